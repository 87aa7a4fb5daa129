#!/bin/sh
# test.sh: set up .venv, then run every check, each within its budget.
#
#   sh install/test.sh [--system] [--slow] [PYTEST ARGUMENTS...]
#
#   --system    first install what the tests use from Debian's packages (root; also when CI=true)
#   --slow      also run what takes minutes (also when CI=true)
#
# With pytest arguments, such as "-k push" or a file, only that one pytest run, without budgets. What a test needs and
# this machine lacks is skipped, with its reason. The second run needs no network. Writes only .venv, .cache and, as pytest does, $TMPDIR.
set -eu

# Budgets in seconds, on two cores; a machine of usual speed needs two thirds.
LINT=120   # ruff, mypy, import-linter
UNIT=320   # tests/test_*.py, with coverage
E2E=560    # tests/e2e: real git, installs, processes
ALL=840    # everything together, setup included; what has not begun by then is skipped, and says so
LAST=50    # for what has begun by then
COVERAGE=95 # percent of lines and branches, by the unit tests alone

# What of the unit tests a Python runs that is neither the first nor the newest: what leans most on the interpreter.
BETWEEN='activation audit autostart broker client control daemon grant invariants keystore lease lending listener
loopback process server watchdog wire'

PACKAGES='bash bubblewrap busybox chromium dash dbus debootstrap gh git git-lfs gnome-keyring golang-go groff-base ksh man-db mksh
openssh-client openssh-server pipx procps python3-venv shellcheck strace systemd'
# Where they are not, from wherever: Debian's are large.
OFTEN_HERE='cargo npm'

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit "$1"
}
system='' slow='' began=$(date +%s)
[ "${CI-}" != true ] || system=ci slow=--slow
while [ $# -gt 0 ]; do
    case $1 in
    --system) system=asked ;;
    --slow) slow=--slow ;;
    --help | -h) usage 0 ;;
    --) shift && break ;;
    *) break ;;
    esac
    shift
done
cd -- "$(dirname -- "$0")/.."
. install/venv.sh

# What cannot be installed is not fatal: the tests that need it say so and are skipped.
apt_install() {
    say "installing $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$@" \
        >>.cache/apt.log 2>&1 </dev/null || say "warning: apt-get failed; .cache/apt.log says why"
}
install_packages() {
    missing='' absent=''
    for package in $PACKAGES; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    for package in $OFTEN_HERE; do
        command -v "$package" >/dev/null || absent="$absent $package"
    done
    [ -n "$missing$absent" ] || return 0
    apt-get update -qq >.cache/apt.log 2>&1 </dev/null || say "warning: apt-get update failed; .cache/apt.log says why"
    # shellcheck disable=SC2086  # $missing is several words
    [ -z "$missing" ] || apt_install $missing
    # Each alone: npm cannot be had beside a node that is not Debian's.
    for package in $absent; do apt_install "$package"; done
}
mkdir -p .cache
if [ -n "$system" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    install_packages
    [ ! -x /usr/sbin/sshd ] || mkdir -p /run/sshd # which its service would make
elif [ "$system" = asked ]; then
    fail "--system needs root, and Debian's packages" "install these by hand: $PACKAGES"
fi

command -v git >/dev/null || fail "git is not on PATH" "install it: apt install git, brew install git, or dnf install git"
find_python
theirs=${TMPDIR-}
private_tmp
# An environment for every other Python that is here: on PATH, or where pyenv keeps them. Their versions go to FILE.
make_other_venvs() {
    others=
    for other in python3.11 python3.12 python3.13 python3.14 "${PYENV_ROOT:-${HOME-}/.pyenv}"/versions/*/bin/python3; do
        other=$(command -v "$other") || continue
        version=$(supported_version "$other") || continue
        case " $tested $others " in *" $version "*) continue ;; esac
        "$other" -I -c 'import ensurepip, venv' 2>/dev/null || continue
        python=$other
        if ! (make_venv ".cache/venv-$version" install/constraints-dev.txt); then
            say "warning: nothing was tested with Python $version"
            continue
        fi
        others="$others $version"
        printf ' %s' "$version" >>"$1"
    done
}

others=$ours/others
: >"$others"
# While .venv is made, and later while mypy has but one core, the other gets ready what later stages need.
beside=''
if [ $# = 0 ]; then
    tested=$(supported_version .venv/bin/python || supported_version "$python")
    make_other_venvs "$others" >"$ours/others.out" 2>&1 </dev/null &
    beside=$!
fi
make_venv .venv install/constraints-dev.txt
tested=$(supported_version .venv/bin/python)
bin=$checkout/.venv/bin

# The wheels that the install tests install from, without a network.
download_wheels() {
    wheels=.cache/wheels
    pins=$("$bin/python" -I -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' install/constraints.txt)
    [ "$(cat $wheels/made-of 2>/dev/null)" != "$pins" ] || return 0
    say "downloading the wheels that the install tests use"
    rm -rf $wheels
    if "$bin/python" -I -m pip download --quiet --require-hashes -r install/constraints.txt -d $wheels; then
        printf '%s\n' "$pins" >$wheels/made-of
    else
        say "warning: no wheels; the install tests will be skipped"
    fi
}

# What ran before shall be of use to what runs next: without their compiled files a process of ours takes twice as long.
unset PYTHONDONTWRITEBYTECODE
# Not for the tests: they bind sockets there, whose paths are better short.
if [ -n "$theirs" ]; then TMPDIR=$theirs; else unset TMPDIR; fi
if [ $# -gt 0 ]; then
    download_wheels
    "$bin/python" -m pytest $slow "$@" && exit 0 || exit $?
fi

# The child gets our signals too: an interrupted pytest ends its daemons.
child=''
trap '[ -z "$child$beside" ] || { kill -INT $child; kill $beside; wait $child $beside; } 2>/dev/null; rm -rf "$ours"' EXIT

results=$ours/results reports=$ours/reports
mkdir "$reports"
stages=0 failed=$ours/failed
: >"$failed"
# stage NAME BUDGET COMMAND...: run it, end it when its time is up, and remember how it went. A pytest is told where
# to put its report.
stage() {
    name=$1 budget=$2
    shift 2
    stages=$((stages + 1))
    report=$reports/$stages.xml
    [ "$2" != -m ] || set -- "$@" --junit-xml "$report"
    printf '\n=== %s: at most %s s ===\n' "$name" "$budget"
    start=$(date +%s)
    if command -v timeout >/dev/null; then
        timeout -s INT -k 20 "$budget" "$@" </dev/null &
    else
        "$@" </dev/null &
    fi
    child=$!
    status=0
    wait "$child" || status=$?
    child=''
    used=$(($(date +%s) - start))
    case $status in
    0) verdict=ok ;;
    124 | 137) verdict='OUT OF TIME' ;;
    *) verdict=FAILED ;;
    esac
    [ "$status" = 0 ] || printf '%s\n' "$report" >>"$failed"
    printf '=== %s: %s, %s s of %s s ===\n' "$name" "$verdict" "$used" "$budget"
    printf '%-28s %-12s %4s s of %4s s\n' "$name" "$verdict" "$used" "$budget" >>"$results"
}

(
    TMPDIR=$ours
    export TMPDIR
    download_wheels
) >"$ours/wheels.out" 2>&1 </dev/null &
beside="$beside $!"
# Each linter runs, also when one before it complained; mypy beside the others, for it takes longer than they all.
# shellcheck disable=SC2016  # for the inner shell
stage 'lint and types' "$LINT" sh -c 'status=0
"$0"/mypy >"$1/mypy.out" 2>&1 &
for tool in "ruff check" "ruff format --check" lint-imports; do
    echo "$ $tool"
    "$0"/$tool || status=1
done
wait "$!" || status=1
echo "$ mypy"
cat "$1/mypy.out"
exit $status' "$bin" "$reports"
# shellcheck disable=SC2086  # two numbers
wait $beside || say "warning: what later stages need is not whole"
beside=''
cat "$ours/others.out" "$ours/wheels.out"
others=$(cat "$others")
# More workers than cores: many a test waits for a moment.
stage 'unit tests' "$UNIT" "$bin/python" -m pytest -q -rs -n 3 \
    --cov --cov-report term "--cov-fail-under=$COVERAGE" --ignore tests/e2e --ignore tests/bench tests
stage 'real git' "$E2E" "$bin/python" -m pytest -q -rs -n 4 --dist loadfile --until $((began + ALL - 90)) tests/e2e

# Sets $left to the seconds that a stage has which takes what is left.
time_left() {
    left=$((began + ALL + LAST - $(date +%s)))
    [ "$left" -ge 60 ] || left=60
}
if [ -n "$slow" ]; then
    time_left
    # Those that wait for a clock first, and beside them as many as are not in each other's way.
    stage 'slow tests' "$left" "$bin/python" -m pytest -q -rs -n 5 --slow -m slow --timeout 300 \
        --until $((began + ALL - 60)) tests/test_*.py tests/e2e
fi

# Side by side, in processes of their own: from 3.12 on a process with threads, such as a worker, must not fork.
# shellcheck disable=SC2086  # a word each
newest=$(printf '%s\n' $tested $others | sort -t . -k 2n | tail -n 1)
between=$(for name in $BETWEEN; do echo "tests/test_$name.py"; done)
time_left
# shellcheck disable=SC2016,SC2086  # for the inner shell; a word each
[ -z "$others" ] || stage "unit tests, Python$others" "$left" sh -c '
reports=$0 until=$1 newest=$2 between=$3 pids= status=0
shift 3
# Who is started with & ignores the interrupt that ends a stage.
trap "kill \$pids 2>/dev/null; exit 130" INT TERM
run() {
    python=.cache/venv-$1/bin/python report=$reports/$1.$2
    shift 2
    $python -m pytest -q -rs --junit-xml "$report.xml" --until "$until" "$@" >"$report.out" 2>&1 &
    pids="$pids $!"
}
for version; do
    if [ "$version" != "$newest" ]; then
        run "$version" 1 $between
        continue
    fi
    for part in 1 2; do
        run "$version" $part --part $part/2 --ignore tests/e2e --ignore tests/bench --ignore-glob "tests/test_standin*" \
            --ignore tests/test_scripts.py tests
    done
done
for pid in $pids; do wait "$pid" || status=1; done
exit $status' "$reports" $((began + ALL)) "$newest" "$between" $others
for version in $others; do
    printf 'Python %s:\n' "$version"
    cat "$reports/$version".*.out
done
tested="$tested$others"

printf '\n'
cat "$results"
printf 'in all %s s; Pythons:%s\n' "$(($(date +%s) - began))" " $tested"
# The line that says it all, last and alone: counted over every run above.
"$bin/python" -I - "$reports" "$failed" <<'PYTHON'
import pathlib, sys
from xml.etree import ElementTree

passed = failed = skipped = 0
bad_reports = set()
for report in pathlib.Path(sys.argv[1]).glob("*.xml"):
    for suite in ElementTree.parse(report).iter("testsuite"):
        tests, errors, failures, skips = (int(suite.get(name)) for name in ("tests", "errors", "failures", "skipped"))
        passed += tests - errors - failures - skips
        failed += errors + failures
        skipped += skips
        if errors + failures:
            bad_reports.add(str(report))
# A linter, the coverage, or a run that was out of time: one failure each.
failed += sum(report not in bad_reports for report in pathlib.Path(sys.argv[2]).read_text().splitlines())
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(failed > 0 or passed == 0)
PYTHON
