# shellcheck shell=sh
# venv.sh: what demo.sh, test.sh and lock.sh share; sourced by them in the root of the checkout.
#
# Writes nowhere but into the checkout: .venv, and .cache for pip's downloads and for temporary files.

# Of the caller's Python and pip only the configuration of the package index is of use here.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV VIRTUAL_ENV
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# Python 3.11 reads an editable install's .pth in the locale's encoding; the checkout's path need not be ASCII.
case ${LC_ALL-} in
C | POSIX)
    unset LC_ALL
    export LC_CTYPE=C.UTF-8
    ;;
esac
checkout=$(pwd -P)
export PIP_CACHE_DIR="$checkout/.cache/pip"
# pip asks rustc for its version, and a rustup that was never used makes a directory in HOME to answer.
[ -d "${RUSTUP_HOME:-${HOME-}/.rustup}" ] || export RUSTUP_HOME="$checkout/.cache/rustup"

say() { printf '%s\n' "$*"; }

# fail ERROR HINT
fail() {
    printf 'ghapp: error: %s\n' "$1" >&2
    [ -z "${2-}" ] || printf 'ghapp: hint: %s\n' "$2" >&2
    exit 1
}

# Temporary files of ours lie in the checkout and go when the script ends, however it does.
private_tmp() {
    mkdir -p .cache
    TMPDIR=$(mktemp -d "$checkout/.cache/tmp.XXXXXX")
    export TMPDIR
    ours=$TMPDIR
    trap 'rm -rf "$ours"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# Prints the version of PYTHON, such as 3.12, if it is one that we support; fails otherwise.
supported_version() {
    "$1" -I -c 'import sys
if sys.version_info < (3, 11): sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Sets $python to the first Python that we support and that can make a virtual environment.
find_python() {
    bare=
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        python=$(command -v "$python") || continue
        supported_version "$python" >/dev/null || continue
        "$python" -I -c 'import ensurepip, venv' 2>/dev/null && return 0
        bare=$python
    done
    if [ -n "$bare" ]; then
        fail "$bare cannot make virtual environments: its venv or ensurepip module is missing" \
            "on Debian and Ubuntu: apt install python3-venv"
    fi
    fail "no Python 3.11 or newer on PATH" \
        "install one: apt install python3 python3-venv, brew install python, or dnf install python3"
}

# pip_in VENV ARGUMENTS...: install there and nowhere else.
pip_in() {
    venv=$1
    shift
    "$venv/bin/python" -I -m pip install --quiet --no-user "$@"
}

# What an environment was made of and where: a moved checkout or a changed pin makes another one of it.
stamp_of() {
    cat pyproject.toml install/venv.sh install/git-credential-ghapp "$2" | cksum
    printf '%s\n' "$checkout/$1"
}

# make_venv VENV CONSTRAINTS: all that CONSTRAINTS pins, hashes checked, and the checkout itself, editable.
# $python makes it where none is. Nothing is done, and no network needed, if it was made of the same before.
make_venv() {
    stamp=$1/$(basename "$2").stamp
    if [ -f "$stamp" ] && [ "$(stamp_of "$1" "$2")" = "$(cat "$stamp")" ] && [ -x "$1/bin/ghapp" ] &&
        "$1/bin/python" -I -c 'import ghapp' 2>/dev/null; then
        return 0
    fi
    # Made elsewhere, by a Python that is gone or too old, or left half-made by one without ensurepip.
    if cat "$1"/*.stamp 2>/dev/null | grep / | grep -qvxF -e "$checkout/$1" ||
        ! supported_version "$1/bin/python" >/dev/null || ! "$1/bin/python" -I -m pip --version >/dev/null 2>&1; then
        say "making $1 with $python"
        rm -rf "${1:?}"
        "$python" -m venv "$1" || {
            rm -rf "${1:?}"
            fail "$python cannot make a virtual environment" "on Debian and Ubuntu: apt install python3-venv"
        }
    fi
    rm -f "$stamp"
    say "installing $(grep -c '^[a-zA-Z0-9].*==' "$2") pinned packages into $1, hashes checked"
    pip_in "$1" --require-hashes -r "$2" ||
        fail "pip could not install what $2 pins" "its last lines above say why; with a network, run this again"
    pip_in "$1" --no-deps --no-build-isolation -e . || fail "pip could not install the checkout itself" ""
    stamp_of "$1" "$2" >"$stamp"
}
