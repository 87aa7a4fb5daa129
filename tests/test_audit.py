"""The audit trail: its lines, its files, and that nothing of it stops anybody."""

import asyncio
import json
import logging
import os
import socket
import stat
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Ghapp
from fakes import FakeClock
from fakes_process import eventually
from hypothesis import given
from hypothesis import strategies as st

from ghapp import audit, caller, config
from ghapp.audit import Audit, Writer
from ghapp.cli import log as log_command
from ghapp.installation import ALL, InstallationId, Scope
from ghapp.lease import Lease, token_sha256
from ghapp.listener import Peer


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
TOKEN = "ghs_" + "x1Y2" * 10
SCOPE = Scope("https://api.github.com", "Iv1", "SHA256:k", InstallationId(7), ("one",), (("contents", "write"),))
LEASE = Lease("0123456789ab", SCOPE, "bot", "Acme", ("One",), (("contents", "write"),), TOKEN, 3600.0)
ME = Peer(os.getpid(), os.geteuid())


@pytest.fixture
def directory() -> Path:
    return config.state_dir()


@pytest.fixture
def trail(directory: Path) -> Audit:
    return Audit(directory, FakeClock())


def lines(directory: Path, name: str = "audit.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / name).read_bytes().splitlines()]


# -- lines ---------------------------------------------------------------------------------------------------------


def test_a_line_has_what_the_contract_names(trail: Audit, directory: Path) -> None:
    with trail.called_by(ME):
        trail.record("answer", "ok", repository="acme/one", lease=LEASE, seconds=0.0123456)
    trail.close()

    (line,) = lines(directory)
    assert line["time"] == "2027-01-15T08:00:00.000Z"
    assert (line["action"], line["repository"], line["outcome"], line["grant"]) == ("answer", "acme/one", "ok", None)
    assert (line["lease"], line["app"], line["duration"]) == ("0123456789ab", "bot", 0.012346)
    assert line["token_sha256"] == token_sha256(TOKEN)
    assert line["scope"] == {"installation": 7, "repositories": ["One"], "permissions": {"contents": "write"}}
    assert (line["peer"]["pid"], line["peer"]["uid"]) == (os.getpid(), os.geteuid())
    assert stat.S_IMODE((directory / "audit.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_without_a_caller_it_is_us_and_a_token_for_all_is_named_by_its_owner(trail: Audit, directory: Path) -> None:
    everything = Scope(SCOPE.api, SCOPE.issuer, SCOPE.key, SCOPE.installation, ALL, SCOPE.permissions)
    trail.record("revocation", "ok", lease=Lease("b" * 12, everything, "bot", "Acme", None, (), TOKEN, 1.0))
    trail.record("mint", "E27", scope=everything)
    trail.close()

    first, second = lines(directory)
    assert (first["repository"], first["scope"]["repositories"]) == ("Acme/*", "all")
    assert first["peer"]["pid"] == os.getpid()
    assert (second["repository"], second["token_sha256"], second["outcome"]) == (None, None, "E27")


ANYTHING = st.text(st.characters(), max_size=200) | st.text("\x00\x1b\x7f\n\r\u2028\u202e\x9b", max_size=20)


@given(
    st.dictionaries(st.sampled_from(["time", "repository", "exe", "cwd"]), ANYTHING | st.none()),
    st.binary(max_size=100),
)
def test_whatever_others_name_a_line_is_one_line_of_printable_ascii_and_says_it(
    values: dict[str, str | None], path: bytes
) -> None:
    entry: dict[str, object] = {**values, "path": os.fsdecode(path)}

    line = audit.format_line(entry)

    assert all(0x20 <= byte < 0x7F for byte in line)
    assert json.loads(line) == entry
    assert os.fsencode(json.loads(line)["path"]) == path


@given(st.text(string.ascii_letters + string.digits, min_size=36, max_size=60), ANYTHING, ANYTHING)
def test_a_token_in_what_others_name_is_not_written(secret: str, before: str, after: str) -> None:
    assert f"ghs_{secret}" not in str(audit._text(f"{before}ghs_{secret}{after}"))


@given(ANYTHING, ANYTHING, ANYTHING)
def test_nothing_that_others_name_steers_a_terminal(name: str, directory: str, outcome: str) -> None:
    entry = {"time": name, "action": name, "repository": name, "outcome": outcome, "grant": name}
    entry |= {"peer": {"pid": 1, "exe": directory, "cwd": directory}}  # type: ignore[dict-item]  # a test's shorthand

    assert all(character.isprintable() for character in log_command.readable(entry))


# -- who called ----------------------------------------------------------------------------------------------------


@ON_LINUX
def test_a_caller_is_named_by_its_program_and_directory_and_the_chain_is_told_once(
    trail: Audit, directory: Path, tmp_path: Path
) -> None:
    child = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    try:
        eventually(lambda: os.readlink(f"/proc/{child.pid}/exe").endswith(("sleep", "coreutils", "busybox")))  # noqa: PTH115  # as the product
        for action in ("answer", "answer", "refusal", "mint", "renewal", "grant", "erase"):
            with trail.called_by(Peer(child.pid, os.geteuid())):
                trail.record(action, "ok")
    finally:
        child.kill()
        child.wait()
    trail.close()

    first, second, *others = (line["peer"] for line in lines(directory))
    assert (first["pid"], first["cwd"]) == (child.pid, str(tmp_path))
    assert [each["pid"] for each in first["chain"]] == [child.pid, os.getpid()]
    assert "chain" not in second
    assert ["chain" in each for each in others] == [True, True, True, True, False]
    assert "command" not in first


@ON_LINUX
def test_who_has_gone_and_who_was_never_there_have_a_number_alone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    for pid in (child.pid, 0, -1):
        found = caller.Callers().look(pid, 5, of_git=True)
        assert (found.pid, found.uid, found.exe, found.cwd, found.chain) == (pid, 5, None, None, ())


def test_elsewhere_the_kernel_says_pid_and_uid_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert caller.Callers().look(7, 501, of_git=True) == caller.Caller(7, 501, key=(7, 0))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # from the socket's client upwards
        (["git", "git-credential-", "sh", "git-remote-http", "git", "bash"], 4),
        (["python3", "git-credential-", "git-remote-http", "git", "git", "node"], 4),
        (["git", "git-remote-http", "git", "sh", "git", "bash"], 2),
        (["git", "bash"], 0),
        (["socat", "bash"], 0),
        (["git", "git-credential-", "cargo", "bash"], 2),
        (["python3", "git-credential-", "git-credential-", "sh", "cargo"], 3),
        (["git", "git-credential-"], 0),
        ([], 0),
    ],
)
def test_the_caller_is_the_git_command_above_our_front(names: list[str], expected: int) -> None:
    line = [caller.Process(100 - place, 1, 99 - place, name) for place, name in enumerate(names)]

    assert caller._git_in(line) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["push", "--force", "https://u:secret@github.com/a/b"], "git push"),
        (["-c", "http.extraHeader=secret", "-C", "secret", "fetch"], "git fetch"),
        (["--git-dir=secret", "--no-pager", "ls-remote"], "git ls-remote"),
        (["Secret9"], "git"),
        ([], "git"),
    ],
)
def test_of_a_command_line_the_subcommand_alone_is_told(words: list[str], expected: str) -> None:
    assert caller._subcommand(["/usr/bin/git", *words]) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/usr/bin/python3", "/home/you/.local/bin/ghapp", "grant", "create", "acme/rocket"], "ghapp grant"),
        (["ghapp", "setup-git"], "ghapp setup-git"),
        (["python3", "-m", "ghapp", "lock"], "ghapp lock"),
        (["python3", "/bin/ghapp", "--help"], "ghapp"),
        (["/bin/ghapp"], "ghapp"),
        (["python3", "-c", "import secret", "ghapp"], None),
        ([""], None),
        ([], None),
    ],
)
def test_of_our_own_command_line_the_subcommand_alone_is_told(words: list[str], expected: str | None) -> None:
    assert caller._own_command(words) == expected


@ON_LINUX
def test_a_name_with_brackets_and_spaces_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a) S (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "60"])
    try:
        eventually(lambda: (found := caller._read(child.pid)) is not None and found.name != "pytest")
        found = caller._read(child.pid)
        assert found is not None
        assert found.parent == os.getpid()
    finally:
        child.kill()
        child.wait()


@ON_LINUX
def test_naming_the_caller_and_noting_an_answer_costs_less_than_a_millisecond(trail: Audit) -> None:
    def once() -> float:
        began = time.perf_counter()
        with trail.called_by(ME, of_git=True):
            trail.look()
            trail.record("answer", "ok", repository="acme/one", lease=LEASE, seconds=0.0)
        return time.perf_counter() - began

    costs = sorted(once() for _ in range(200))
    trail.close()

    assert costs[len(costs) // 2] < 0.001


async def test_what_is_begun_for_a_caller_is_named_after_it_and_what_others_do_is_not(
    trail: Audit, directory: Path
) -> None:
    begun = asyncio.Event()

    async def later(action: str) -> None:
        await begun.wait()
        trail.record(action, "ok")

    with trail.called_by(Peer(0, 77)):
        mine = asyncio.create_task(later("mint"))
    other = asyncio.create_task(later("revocation"))
    begun.set()
    await asyncio.gather(mine, other)
    trail.close()

    assert {line["action"]: line["peer"]["uid"] for line in lines(directory)} == {
        "mint": 77,
        "revocation": os.geteuid(),
    }


# -- files ---------------------------------------------------------------------------------------------------------


def test_lines_are_in_order_and_files_turn_over_and_are_bounded(
    directory: Path, monkeypatch: pytest.MonkeyPatch, ghapp: Ghapp
) -> None:
    monkeypatch.setattr(audit, "MAX_FILE", 2000)
    writer = Writer(directory)
    for number in range(300):
        writer.put(audit.format_line({"time": f"{number:05}", "action": "answer", "outcome": "ok"}))
    writer.close()

    files = sorted(path.name for path in directory.iterdir())
    assert files == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    assert all(path.stat().st_size <= 2000 for path in directory.iterdir())
    numbers = [int(json.loads(line)["time"]) for line in ghapp("log", "--json").out.splitlines()]
    assert numbers == list(range(numbers[0], 300))
    assert len(numbers) > 90


def test_a_grant_writes_over_its_own_lines_alone(
    trail: Audit, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_GRANT_FILE", 1000)
    monkeypatch.setattr(audit, "GRANTS_KEPT", 2)
    with trail.called_by(ME):
        trail.record("answer", "ok")
    for name in ("one", "two", "three"):
        for _ in range(20):
            with trail.called_by(ME, grant=name):
                trail.record("answer", "ok")
    trail.close()

    assert len(lines(directory)) == 1
    assert {line["grant"] for line in lines(directory, "audit-grant-three.jsonl")} == {"three"}
    assert len(list(directory.glob("audit-grant-*.jsonl"))) == 2
    assert not list(directory.glob("audit-grant-one*"))


@pytest.mark.parametrize(("limit", "most"), [("GRANTS_KEPT", 5), ("MAX_GRANTS_SIZE", 2000)])
def test_the_files_of_grants_that_wrote_little_are_bounded_too(
    trail: Audit, directory: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    """Each `ghapp exec` whose command runs git leaves one."""
    monkeypatch.setattr(audit, limit, most)
    for number in range(20):
        with trail.called_by(ME, grant=f"exec-{number}"):
            trail.record("answer", "ok")
        trail.close()

    kept = sorted(directory.glob("audit-grant-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert 2 <= len(kept) <= 8
    assert kept[-1].name == "audit-grant-exec-19.jsonl"
    assert len(kept) <= most
    assert sum(path.stat().st_size for path in kept) <= max(most, 5000)


def test_what_a_timer_does_for_a_grants_token_is_not_in_the_file_of_the_others(trail: Audit, directory: Path) -> None:
    """A sandbox decides how many tokens there are to renew."""
    of_grant = replace(SCOPE, grant="box#1")
    trail.record("renewal", "ok", scope=of_grant)
    trail.record("renewal", "ok", scope=SCOPE)
    with trail.called_by(ME):
        trail.record("revocation", "ok", scope=of_grant)  # a person's doing is the trail's
    trail.close()

    assert [line["grant"] for line in lines(directory, "audit-grant-box.jsonl")] == ["box"]
    assert [(line["action"], line["grant"]) for line in lines(directory)] == [("renewal", None), ("revocation", "box")]


def test_a_name_of_no_grant_makes_no_file(trail: Audit, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with trail.called_by(ME, grant="../x"):
        trail.record("answer", "ok")
    trail.record("mint", "ok")
    trail.close()

    assert [line["action"] for line in lines(directory)] == ["mint"]
    assert len(list(directory.parent.rglob("*.jsonl"))) == 1
    assert "the audit trail cannot be written" in caplog.text


def test_the_trail_is_not_written_through_a_link(
    trail: Audit, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.mkdir(parents=True)
    elsewhere = directory / "elsewhere"
    elsewhere.touch()
    (directory / "audit.jsonl").symlink_to(elsewhere)
    trail.record("answer", "ok")
    trail.close()

    assert elsewhere.read_bytes() == b""
    assert "the audit trail cannot be written" in caplog.text


def make_directory(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the whole path may be too long for one
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(before)


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_directory, os.mkfifo, make_socket, make_link_to_itself])
def test_what_is_no_file_holds_up_neither_who_writes_nor_who_reads(
    trail: Audit,
    directory: Path,
    ghapp: Ghapp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    make: Callable[[Path], None],
) -> None:
    directory.mkdir(parents=True)
    for name in ("audit-grant-box.jsonl", "audit-grant-other.jsonl", "audit-grant-fine.jsonl.1"):
        make(directory / name)

    def record(*grants: str | None) -> None:
        for grant in grants:
            with trail.called_by(ME, grant=grant):
                trail.record("answer", "ok")
        trail.close()

    record("box", "fine", None)
    first = ghapp("log", "--json")
    assert (first.code, [json.loads(line)["grant"] for line in first.out.splitlines()]) == (1, [None, "fine"])
    assert first.err.count(" is not a file: nothing is recorded there") == 3
    assert "the audit trail cannot be written" in caplog.text
    monkeypatch.setattr(audit, "GRANTS_KEPT", 1)
    record("fresh", None)
    then = ghapp("log", "--json")
    assert [json.loads(line)["grant"] for line in then.out.splitlines()] == [None, None, "fresh"]


def test_a_line_that_was_cut_off_spoils_no_other(trail: Audit, directory: Path, ghapp: Ghapp) -> None:
    directory.mkdir(parents=True)
    (directory / "audit.jsonl").write_bytes(b'{"time": "2026-01-01T00:00:00.000Z", "act')
    trail.record("mint", "ok")
    trail.close()

    assert [json.loads(line)["action"] for line in ghapp("log", "--json").out.splitlines()] == ["mint"]


def test_a_disk_without_room_loses_whole_lines_says_so_once_and_the_gap_is_in_the_trail(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = threading.Event()

    def write(descriptor: int, data: bytes) -> int:
        if room.is_set():
            return os.write(descriptor, data)
        return os.write(descriptor, data[:10])  # what still fits

    trail = Audit(directory, FakeClock(), write=write)
    for _ in range(3):
        trail.record("answer", "ok")
    eventually(lambda: trail._writer._lost[None] == 3)
    assert (directory / "audit.jsonl").read_bytes() == b""
    room.set()
    trail.record("mint", "ok")
    trail.close()

    assert [(line["action"], line["outcome"]) for line in lines(directory)] == [
        ("gap", "3 lines were lost"),
        ("mint", "ok"),
    ]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_no_place_for_the_trail_stops_nobody(directory: Path, ghapp: Ghapp, caplog: pytest.LogCaptureFixture) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_bytes(b"")
    trail = Audit(directory, FakeClock())
    trail.record("answer", "ok")
    trail.record("answer", "ok")
    trail.close()

    assert caplog.text.count("the audit trail cannot be written") == 1
    assert ghapp("log").err == "nothing was recorded yet\n"


def test_a_sandbox_that_floods_a_slow_disk_costs_only_its_own_lines(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a line of the others is lost, nor is their file filled with gaps."""
    monkeypatch.setattr(audit, "MAX_WAITING", 10)
    answers = threading.Event()

    def write(descriptor: int, data: bytes) -> int:
        assert answers.wait(20)
        return os.write(descriptor, data)

    trail = Audit(directory, FakeClock(), write=write)
    for _ in range(100):
        with trail.called_by(ME, grant="box"):
            trail.record("answer", "ok")
    for _ in range(3):
        trail.record("mint", "ok")
    answers.set()
    trail.close()
    with trail.called_by(ME, grant="box"):
        trail.record("answer", "ok")
    trail.close()

    assert [line["action"] for line in lines(directory)] == ["mint"] * 3
    of_box = lines(directory, "audit-grant-box.jsonl")
    (gap,) = [line for line in of_box if line["action"] == "gap"]
    assert gap["grant"] == "box"
    assert len(of_box) - 1 + int(gap["outcome"].split()[0]) == 101


def test_a_disk_that_does_not_answer_holds_nobody_up_and_fills_no_memory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_WAITING", 5)
    monkeypatch.setattr(audit, "FLUSH_LIMIT", 0.05)
    answers = threading.Event()

    def write(descriptor: int, data: bytes) -> int:
        answers.wait(10)
        return os.write(descriptor, data)

    trail = Audit(directory, FakeClock(), write=write)
    for _ in range(100):
        trail.record("answer", "ok")
    assert trail._writer._queue.qsize() <= 5
    thread = trail._writer._thread
    assert thread is not None
    trail.close()
    answers.set()
    thread.join(10)
    assert not thread.is_alive()
    assert lines(directory)[1]["action"] == "gap"


# -- reading it ----------------------------------------------------------------------------------------------------


def put(directory: Path, *entries: dict[str, object], name: str = "audit.jsonl") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("ab") as file:
        for entry in entries:
            file.write(audit.format_line(entry) + b"\n")


def entry(when: str, repository: str | None = "acme/one", **more: object) -> dict[str, object]:
    peer = {"pid": 7, "uid": 1, "exe": "/usr/bin/git", "cwd": "/src", "command": "git push"}
    usual = {"time": when, "action": "answer", "repository": repository, "outcome": "ok", "peer": peer}
    return usual | more


def test_since_a_while_ago(directory: Path, ghapp: Ghapp) -> None:
    put(directory, entry(audit.timestamp(time.time() - 7200)), entry(audit.timestamp(time.time() - 60)))

    assert [len(ghapp("log", "--since", since).out.splitlines()) for since in ("3h", "10m", "1s")] == [2, 1, 0]


def test_what_a_person_reads(directory: Path, ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_command, "_local", lambda text: text[:19].replace("T", " "))
    put(directory, entry("2026-11-21T10:00:00.000Z", outcome="E20", duration=0.25, grant="box"))

    (line,) = ghapp("log").out.splitlines()

    assert line == (
        "2026-11-21 10:00:00  answer      acme/one  the app is installed on the owner, but not on that repository (E20)"
        "  by git push (pid 7, /usr/bin/git) in /src  through grant box  0.250 s"
    )


def test_lines_of_grants_stand_between_the_others_by_their_time(directory: Path, ghapp: Ghapp) -> None:
    put(directory, entry("2026-11-21T10:00:00.000Z"), entry("2026-11-21T10:00:02.000Z"))
    put(directory, entry("2026-11-21T10:00:01.000Z"), name="audit-grant-box.jsonl")

    times = [json.loads(line)["time"][17:19] for line in ghapp("log", "--json").out.splitlines()]

    assert times == ["00", "01", "02"]


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-11-21T10:00:01Z", 1),
        ("2026-11-21t10:00:01z", 1),
        ("2026-11-21T12:00:01+02:00", 1),
        ("2026-11-21", 2),
        ("99999d", 2),
    ],
)
def test_since(directory: Path, ghapp: Ghapp, since: str, expected: int) -> None:
    put(directory, entry("2026-11-21T10:00:00.000Z"), entry("2026-11-21T10:00:01.000Z"))

    assert len(ghapp("log", "--since", since).out.splitlines()) == expected


@pytest.mark.parametrize("since", ["yesterday", "10", "10y", "2026-13-01"])
def test_a_time_that_is_none(ghapp: Ghapp, since: str) -> None:
    done = ghapp("log", "--since", since)

    assert (done.code, "is neither 10m" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("repository", "expected"),
    [("acme/one", 1), ("ACME/One", 1), ("acme/two", 1), ("acme/*", 2), ("acme", 2), ("beta/x", 1), ("other/one", 0)],
)
def test_repo(directory: Path, ghapp: Ghapp, repository: str, expected: int) -> None:
    put(
        directory,
        entry("2026-11-21T10:00:00.000Z", scope={"repositories": ["one"]}),
        entry("2026-11-21T10:00:00.000Z", "acme/three", scope={"repositories": ["two", "three"]}),
        entry("2026-11-21T10:00:00.000Z", "beta/*", scope={"repositories": "all"}),
        entry("2026-11-21T10:00:00.000Z", None),
    )

    assert len(ghapp("log", "--repo", repository).out.splitlines()) == expected


def test_what_is_no_line_of_ours_is_passed_over(directory: Path, ghapp: Ghapp) -> None:
    directory.mkdir(parents=True)
    broken = b'\xff\n[1]\n{"time": 1}\n{"a": 1}\n' + b"[" * 100_000 + b"\n\x1b[31m\n"
    (directory / "audit.jsonl").write_bytes(broken)
    put(directory, entry("2026-11-21T10:00:00.000Z", peer=None), {"time": "soon", "peer": {"pid": "\x1b"}})

    assert len(ghapp("log").out.splitlines()) == 2
    assert "\x1b" not in ghapp("log", "--json").out


def test_numbers_that_no_float_is_and_lines_too_long_to_be_ours_hide_nothing(directory: Path, ghapp: Ghapp) -> None:
    put(directory, entry("2026-11-21T10:00:00.000Z", duration=10**400))
    with (directory / "audit.jsonl").open("ab") as file:
        file.write(b'{"time": "' + b"x" * 3_000_000 + b'"}\n')
    put(directory, entry("2026-11-21T10:00:01.000Z"), entry("2026-11-21T10:00:02.000Z", cwd="x" * 1_200_000))
    put(directory, entry("2026-11-21T10:00:03.000Z"))

    done = ghapp("log")

    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 3
    assert "0000" not in done.out.splitlines()[0].split("in /src")[1]


def test_a_line_too_long_to_be_ours_is_passed_over_once_it_is_whole(directory: Path) -> None:
    trail = log_command.Trail(directory)
    put(directory, entry("1"))
    with (directory / "audit.jsonl").open("ab", buffering=0) as file:
        file.write(b"x" * 2_000_000)
        assert [each["time"] for _, each in trail.new()] == ["1"]
        file.write(b"x\n")
        put(directory, entry("2"))
        assert [each["time"] for _, each in trail.new()] == ["2"]


def test_lines_are_there_also_where_the_file_was_turned_over_and_no_other_begun(
    trail: Audit, directory: Path, ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(directory, entry("2026-11-21T10:00:00.000Z"), name="audit-grant-a.jsonl.1.jsonl.1")
    put(directory, entry("2026-11-21T10:00:00.000Z"), name="audit-grant-box.jsonl.2")
    put(directory, entry("2026-11-21T10:00:00.000Z"), name="audit-grant-box.jsonl.4")  # which is none of ours

    assert len(ghapp("log").out.splitlines()) == 2

    monkeypatch.setattr(audit, "GRANTS_KEPT", 1)
    with trail.called_by(ME, grant="other"):
        trail.record("answer", "ok")
    trail.close()
    assert {path.name for path in directory.glob("audit-grant-*")} == {
        "audit-grant-box.jsonl.4",
        "audit-grant-other.jsonl",
    }


def test_so_many_grants_have_files_that_more_descriptors_are_needed_than_there_usually_are(directory: Path) -> None:
    for number in range(300):
        for name in (f"audit-grant-g{number}.jsonl.1", f"audit-grant-g{number}.jsonl"):
            put(directory, entry("2026-11-21T10:00:00.000Z"), name=name)
    command = [sys.executable, "-m", "ghapp", "log", "--json"]

    done = subprocess.run(
        ["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh", *command], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 600


def test_nothing_yet_is_said(ghapp: Ghapp) -> None:
    assert ghapp("log").err == "nothing was recorded yet\n"
    assert ghapp("log", "--repo", "a/b").err == "nothing was recorded that fits\n"
    assert (ghapp("log", "--json").out, ghapp("log", "--json").err) == ("", "")


def test_each_line_is_read_once_also_when_files_turn_over_and_a_line_comes_in_pieces(directory: Path) -> None:
    trail = log_command.Trail(directory)

    def new() -> list[str]:
        return [entry["time"] for _, entry in trail.new()]

    put(directory, entry("1"), entry("2"))
    assert new() == ["1", "2"]
    put(directory, entry("3"))
    audit.turn_over(directory / "audit.jsonl")
    put(directory, entry("4"))
    assert new() == ["3", "4"]
    line = audit.format_line(entry("5")) + b"\n"
    with (directory / "audit.jsonl").open("ab", buffering=0) as file:
        file.write(line[:20])
        assert new() == []
        file.write(line[20:])
    assert new() == ["5"]
    assert new() == []


class Turning(list[Path]):
    """The files of a series, the newest of which turns over between two looks at them."""

    def turned(self, paths: Iterator[Path]) -> Iterator[Path]:
        newest, turned = self[-2:], False
        for path in paths:
            yield path
            if path in newest and not turned:
                turned = True
                audit.turn_over(newest[-1])
                put(newest[-1].parent, entry("3"))

    def __iter__(self) -> Iterator[Path]:
        return self.turned(super().__iter__())

    def __reversed__(self) -> Iterator[Path]:
        return self.turned(super().__reversed__())


class Disturbed(log_command.Trail):
    """A trail whose file turns over while it is read, once."""

    disturb = False

    def _of_series(self, files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.disturb:
            self.disturb, files = False, Turning(files)
        yield from super()._of_series(files)


def test_a_file_that_turns_over_between_its_opening_and_its_predecessors_is_read_once(directory: Path) -> None:
    trail = Disturbed(directory)
    put(directory, entry("1"))
    assert [each["time"] for _, each in trail.new()] == ["1"]
    put(directory, entry("2"))
    trail.disturb = True

    assert [each["time"] for _, each in trail.new()] == ["2"]
    assert [each["time"] for _, each in trail.new()] == ["3"]
    assert list(trail.new()) == []


def test_a_file_that_is_gone_is_forgotten_for_its_number_is_soon_anothers(directory: Path) -> None:
    trail = log_command.Trail(directory)
    put(directory, entry("1"), entry("2"))
    path, aside = directory / "audit.jsonl", directory / "aside"
    assert [each["time"] for _, each in trail.new()] == ["1", "2"]
    path.rename(aside)
    assert list(trail.new()) == []

    put(directory, entry("3"), entry("4"), entry("5"), name="aside.new")
    aside.write_bytes((directory / "aside.new").read_bytes())
    aside.rename(path)

    assert [each["time"] for _, each in trail.new()] == ["3", "4", "5"]
