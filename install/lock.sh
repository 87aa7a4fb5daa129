#!/bin/sh
# lock.sh: write install/constraints*.txt anew from pyproject.toml. Needs a network; run it after changing a dependency.
#
#   sh install/lock.sh              keep what is pinned, add what is missing
#   sh install/lock.sh --upgrade    the newest of everything
set -eu
cd -- "$(dirname -- "$0")/.."
. install/venv.sh

case ${1-} in
'' | --upgrade) ;;
*)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' install/lock.sh
    [ "$1" = --help ] || exit 2
    exit 0
    ;;
esac

find_python
private_tmp
say "making a virtual environment for uv"
"$python" -m venv "$TMPDIR/uv"
pip_in "$TMPDIR/uv" uv

# compile FILE OPTIONS...: pins with hashes, for every platform and every Python that we support.
compile() {
    file=$1
    shift
    say "writing $file"
    "$TMPDIR/uv/bin/uv" --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-find-links --no-annotate --no-strip-extras \
        --custom-compile-command 'sh install/lock.sh' --output-file "$file" "$@" pyproject.toml
}
export UV_CACHE_DIR="$TMPDIR/cache" UV_PYTHON_DOWNLOADS=never
unset UV_FIND_LINKS UV_INDEX_URL UV_EXTRA_INDEX_URL 2>/dev/null || :
compile install/constraints-dev.txt --group dev "$@"
# The demo's own, a part of the same: what is pinned there is pinned here.
compile install/constraints.txt --group build --group standin --constraint install/constraints-dev.txt "$@"
