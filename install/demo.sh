#!/bin/sh
# demo.sh: clone, commit and push on https://github.com as a GitHub App, with no account and no network: a stand-in for
# GitHub runs on this machine, behind a proxy on 127.0.0.1.
#
#   sh install/demo.sh
#
# Needs git and Python 3.11. Writes only into this checkout: .venv stays for the next time, the rest goes at the end.
set -eu
umask 022
case ${1-} in
'') ;;
*)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    [ "$1" = --help ] || [ "$1" = -h ] || exit 2
    exit 0
    ;;
esac
cd -- "$(dirname -- "$0")/.."
. install/venv.sh

command -v git >/dev/null || fail "git is not on PATH" "install it: apt install git, brew install git, or dnf install git"
find_python
private_tmp
make_venv .venv install/constraints.txt
rm -rf "$TMPDIR"
unset TMPDIR
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests exec .venv/bin/python -P tests/standin/demo.py .cache
