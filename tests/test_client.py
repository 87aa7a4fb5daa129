"""What git runs on a miss: whole answers only, and reasons on stderr."""

import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes_process import LIMIT, end_daemon, git_cache, listener, listener_of_another_user, saying, wait_for

from ghapp import client, paths, process


ANSWER = b"username=x-access-token\npassword=t0ken\npassword_expiry_utc=2000000000\nghapp=1\n"
REQUEST = b"protocol=https\nhost=github.com\npath=acme/rocket.git\n\n"


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(paths.runtime_dir())
    path.mkdir(mode=0o700)
    yield path
    end_daemon(path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DEADLINE", 5.0)


def run(capfd: pytest.CaptureFixture[str], request: bytes = REQUEST) -> tuple[str, str]:
    """Run the client with `request` on its standard input."""
    reader, writer = os.pipe()
    before = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)

    def feed() -> None:
        os.write(writer, request)
        os.close(writer)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        client.main()
    finally:
        os.dup2(before, 0)
        os.close(before)
        feeder.join()
    captured = capfd.readouterr()
    return captured.out, captured.err


def test_a_whole_answer_is_printed_without_the_marker(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        while chunk := connection.recv(65536):
            asked.append(chunk)
        connection.sendall(ANSWER)

    with listener(directory / "git.sock", serve):
        assert run(capfd) == (ANSWER.removesuffix(b"ghapp=1\n").decode(), "")

    assert b"".join(asked) == b"action=get\ntimeout=0\nghapp=1\n" + REQUEST.removesuffix(b"\n")


def test_an_answer_cut_off_anywhere_is_no_answer(directory: Path) -> None:
    sent = b""

    def serve(connection: socket.socket) -> None:
        saying(sent)(connection)

    with listener(directory / "git.sock", serve):
        for length in range(len(ANSWER)):
            sent = ANSWER[:length]
            with pytest.raises(client.NoAnswer):
                client.ask(paths.git_socket(), b"action=get\ntimeout=0\nghapp=1\n", LIMIT)


def test_nothing_of_a_cut_off_answer_is_ever_printed(
    directory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    from ghapp import autostart  # noqa: PLC0415  # as the client does

    monkeypatch.setattr(autostart, "interpreter", lambda: ["/bin/true"])
    with listener(directory / "git.sock", saying(ANSWER[:-9])):
        out, err = run(capfd)

    assert out == "quit=1\n"
    assert "t0ken" not in err
    assert err == (
        "ghapp: error: the daemon ends at every request; see 'ghapp daemon status'\nghapp: hint: ghapp daemon status\n"
    )


def test_reasons_are_printed_in_printable_ascii_and_quit_is_passed_on(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with listener(directory / "git.sock", saying(b"error=no \x1b[2Jkey\xc3\xa9\nhint=a=b\nquit=1\nghapp=1\n")):
        assert run(capfd) == ("quit=1\n", "ghapp: error: no ?[2Jkey??\nghapp: hint: a=b\n")


def test_an_answer_with_nothing_in_it_prints_nothing(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with listener(directory / "git.sock", saying(b"ghapp=1\n")):
        assert run(capfd) == ("", "")


@pytest.mark.parametrize("request_", [b"", b"\n", b"x" * (client.MAX_REQUEST + 1)])
def test_no_request_and_an_oversized_one_ask_nobody(capfd: pytest.CaptureFixture[str], request_: bytes) -> None:
    assert run(capfd, request_) == ("", "")
    assert not Path(paths.runtime_dir()).exists()


def test_a_request_without_its_last_line_end_is_mended(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        while chunk := connection.recv(65536):
            asked.append(chunk)
        connection.sendall(b"ghapp=1\n")

    with listener(directory / "git.sock", serve):
        run(capfd, b"protocol=https")

    assert b"".join(asked).endswith(b"ghapp=1\nprotocol=https\n")


def test_a_daemon_is_started_where_none_runs(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd) == ("", "")  # no app is configured, so this is not ours

    assert process.lock_holder(str(directory)) is not None


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_datagram_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))


def a_socket_that_nobody_may_open(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
    path.chmod(0)


@pytest.mark.parametrize(
    "squat", [a_link_to_itself, a_directory, a_datagram_socket, a_socket_that_nobody_may_open], ids=lambda f: f.__name__
)
def test_whatever_cannot_be_connected_to_is_nobody(directory: Path, squat: Callable[[Path], None]) -> None:
    """So a daemon is started, which clears the path; only what is wrong with ourselves is told."""
    squat(directory / "git.sock")

    with pytest.raises(client.NoAnswer):
        client.ask(paths.git_socket(), b"action=get\ntimeout=0\nghapp=1\n", LIMIT)


def test_gits_own_cache_daemon_on_our_path_is_replaced(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with git_cache(directory / "git.sock") as cache:
        assert run(capfd) == ("", "")
        assert cache.wait(5) == 0

    assert process.complete(str(directory))


def test_a_listener_that_hangs_is_given_up(
    directory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.2)
    go = threading.Event()
    with listener(directory / "git.sock", lambda _: wait_for(go)):
        out, err = run(capfd)
        go.set()

    assert out == "quit=1\n"
    assert err.startswith("ghapp: error: the daemon did not answer within 0 s (E41)\nghapp: hint: ghapp daemon restart")


def test_an_answer_that_trickles_does_not_extend_the_deadline(directory: Path) -> None:
    go = threading.Event()

    def trickle(connection: socket.socket) -> None:
        while not go.wait(0.05):
            connection.sendall(b"x")

    with listener(directory / "git.sock", trickle):
        with pytest.raises(TimeoutError):
            client.ask(paths.git_socket(), b"", 0.2)
        go.set()


def test_an_endless_answer_is_cut_off(directory: Path) -> None:
    def flood(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass
        connection.sendall(b"x" * (client.MAX_ANSWER * 2))

    with listener(directory / "git.sock", flood), pytest.raises(client.NoAnswer):
        client.ask(paths.git_socket(), b"", LIMIT)


@pytest.mark.usefixtures("directory")
def test_a_full_backlog_is_waited_for() -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(paths.git_socket())
    server.listen(0)
    first = client.connect(paths.git_socket(), LIMIT)

    with pytest.raises(TimeoutError):
        client.connect(paths.git_socket(), 0.1)

    def accept() -> None:
        server.accept()[0].close()

    make_room = threading.Thread(target=accept)
    make_room.start()
    client.connect(paths.git_socket(), LIMIT).close()
    make_room.join()

    first.close()
    server.close()


def test_who_hangs_up_before_reading_is_no_answer(directory: Path) -> None:
    with listener(directory / "git.sock", lambda _: None), pytest.raises(client.NoAnswer):
        client.ask(paths.git_socket(), b"x" * 60_000, LIMIT)


def test_a_path_longer_than_the_kernels_field_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("d" * 120)
    long.mkdir()
    monkeypatch.chdir(long)
    with listener("s", saying(b"ghapp=1\n")):
        monkeypatch.chdir(tmp_path)
        assert client.ask(str(long / "s"), b"", LIMIT) == b""
        assert Path.cwd() == tmp_path


def test_a_directory_that_is_not_safe_is_explained(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", str(tmp_path / "it's mine"))
    Path(paths.runtime_dir()).mkdir()
    Path(paths.runtime_dir()).chmod(0o755)
    out, err = run(capfd)
    assert out == "quit=1\n"
    assert "is open to others (E43)\nghapp: hint: chmod 700" in err
    hint = err.splitlines()[-1].removeprefix("ghapp: hint: ")
    assert shlex.split(hint) == ["chmod", "700", paths.runtime_dir()]

    strange = tmp_path / "\udcff\x1b"
    strange.touch()
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", str(strange))
    out, err = run(capfd)
    assert "/?? is not a directory (E43)" in err
    assert out == "quit=1\n"


def test_the_systems_own_errors_are_explained_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", "/run/x")

    assert client.explained(PermissionError(13, "Permission denied")) == "/run/x/git.sock: Permission denied (E41)"
    assert client.explained(OSError()) == "OSError"
    assert client.explained(OSError("ours")) == "ours"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can listen as another user")
def test_a_listener_of_another_user_is_refused(tmp_path: Path) -> None:
    with (
        listener_of_another_user(tmp_path / "s"),
        pytest.raises(PermissionError, match=r"served by another user \(E44\)"),
    ):
        client.connect(str(tmp_path / "s"), LIMIT)


def test_macos_tells_the_peer_in_its_own_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option, size) == (0, 1, 76)
            return bytes(4) + (501).to_bytes(4, sys.byteorder) + bytes(68)

    monkeypatch.setattr(sys, "platform", "darwin")

    assert client.peer_uid(Connection()) == 501  # type: ignore[arg-type]  # a fake


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_closed_descriptors_give_no_traceback_and_no_wrong_place(directory: Path, closed: tuple[int, ...]) -> None:
    program = "import os, sys\nfrom ghapp import client\nfor n in eval(sys.argv[1]): os.close(n)\nclient.main()\n"
    with listener(directory / "git.sock", saying(b"error=why\n" + ANSWER)):
        done = subprocess.run(
            [sys.executable, "-c", program, repr(closed)], input=REQUEST, capture_output=True, check=False, timeout=20
        )

    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stdout == (b"" if 0 in closed or 1 in closed else ANSWER.removesuffix(b"ghapp=1\n"))


def test_it_imports_nothing_that_costs_time() -> None:
    program = "import sys; before = set(sys.modules); import ghapp.client; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)

    assert eval(done.stdout) <= {"ghapp", "ghapp.client", "ghapp.paths", "_socket"}  # noqa: S307  # our own output


def test_waiting_is_a_wait() -> None:
    before = client.now()
    client.wait(0.05)

    assert client.now() > before
