"""The daemon's life: begins once, mends itself, ends well."""

import asyncio
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes_process import (
    LIMIT,
    closed_port,
    ending_by_itself,
    eventually,
    git_cache,
    make,
    running,
    soon,
    talk,
)
from standin.model import App
from standin.server import StandIn

from ghapp import config, daemon, outside, paths, process
from ghapp.clock import SystemClock
from ghapp.daemon import Daemon, serve
from ghapp.errors import ConfigError, TlsFailed


GET = b"action=get\ntimeout=0\nghapp=1\nprotocol=https\nhost=github.com\npath=acme/rocket.git\n"
PERMISSIONS = {"contents": "write", "issues": "write"}


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch) -> App:
    """An app on acme with acme/rocket, configured here."""
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    configure(app)
    return app


def configure(app: App, more: str = "") -> None:
    config.config_dir().mkdir(parents=True, exist_ok=True)
    key = config.config_dir() / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(app.private_key_pem)
    text = f'[[app]]\nname = "{app.slug}"\napp_id = {app.id}\nkeys = ["file:{key}"]\n{more}'
    config.config_file().write_text(text)


def configure_nothing(text: str) -> None:
    config.config_dir().mkdir(parents=True, exist_ok=True)
    config.config_file().write_text(text)


async def get(directory: Path) -> dict[str, str]:
    answer = await asyncio.to_thread(talk, directory / "git.sock", GET)
    return dict(line.split("=", 1) for line in answer.decode().splitlines())


async def call(directory: Path, method: str, **params: object) -> Any:
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"
    return json.loads(await asyncio.to_thread(talk, directory / "control.sock", line, half_close=True))


async def test_a_token_is_minted_once_and_the_status_counts_it(directory: Path, app: App, github: StandIn) -> None:
    async with running(directory):
        first, second = await get(directory), await get(directory)
        status = (await call(directory, "status"))["result"]
        leases = (await call(directory, "leases"))["result"]

    assert first["password"] == second["password"]
    assert len(github.mints) == 1
    assert (status["mints"], status["hits"], status["leases"], status["pid"]) == (1, 1, 1, os.getpid())
    assert status["apps"] == [{"name": "acme-bot", "host": "github.com", "issuer": str(app.id), "trouble": None}]
    assert (status["calls"], status["flights"]) == (2, 0)
    assert status["descriptors"] > 3
    assert abs(status["clock_offset"]) < 5
    assert leases[0]["repositories"] == ["rocket"]
    assert leases[0]["uses"] == 2
    assert first["password"] not in json.dumps(leases)


async def test_tools_get_what_the_installation_grants(directory: Path, app: App) -> None:
    async with running(directory):
        token = (await call(directory, "token", repositories=["acme/rocket"]))["result"]
        less = (await call(directory, "token", repositories=["acme/rocket"], permissions={"issues": "read"}))["result"]
        wrong = await call(directory, "token", repositories=["nonsense"])
        found = (await call(directory, "installations"))["result"]
        verified = await call(
            directory,
            "verify_app",
            host="github.com",
            api="https://api.github.com",
            signer=f"file:{config.config_dir() / 'key.pem'}",
            app_id=app.id,
        )

    assert set(token) == {"token", "expires_at", "permissions", "repositories"}
    assert token["permissions"]["contents"] == "write"
    assert less["permissions"].get("contents") is None
    assert wrong["error"]["data"]["code"] == "E01"
    assert [(entry["account"], entry["app"]) for entry in found] == [("acme", "acme-bot")]
    assert verified["result"]["slug"] == "acme-bot"


@pytest.mark.usefixtures("app")
async def test_stopping_answers_those_in_flight_and_revokes_what_they_got(directory: Path, github: StandIn) -> None:
    go = threading.Event()
    held = github.faults.add("access_tokens", hold=go)
    async with running(directory):
        client = asyncio.create_task(get(directory))
        await soon(held.reached.is_set)
        stopping = asyncio.create_task(call(directory, "stop"))
        await soon(lambda: not (directory / "git.sock").exists())
        go.set()
        token = (await client)["password"]
        answer = (await stopping)["result"]

    assert answer == {"pid": os.getpid(), "revoked": 1, "not_revoked": 0}
    assert github.live_token(token) is None


@pytest.mark.usefixtures("app")
async def test_a_stop_that_keeps_tokens_revokes_none(directory: Path, github: StandIn) -> None:
    async with running(directory):
        token = (await get(directory))["password"]
        answer = (await call(directory, "stop", revoke=False))["result"]

    assert answer["revoked"] == 0
    assert github.live_token(token) is not None


@pytest.mark.usefixtures("app")
async def test_sigterm_answers_those_in_flight(directory: Path, github: StandIn) -> None:
    go = threading.Event()
    held = github.faults.add("access_tokens", hold=go)
    async with running(directory):
        client = asyncio.create_task(get(directory))
        await soon(held.reached.is_set)
        os.kill(os.getpid(), signal.SIGTERM)
        await soon(lambda: not (directory / "control.sock").exists())
        go.set()
        token = (await client)["password"]

    assert github.live_token(token) is not None


async def test_sighup_reads_the_config_and_a_broken_one_keeps_the_old(
    directory: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(directory) as running_daemon:
        await get(directory)
        old = running_daemon._outside.config
        config.config_file().write_text("nonsense = 1\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(lambda: "the old configuration stays" in caplog.text)
        assert running_daemon._outside.config is old
        assert "password" in await get(directory)
        assert "nonsense" in (await call(directory, "reload"))["error"]["message"]

        configure(app, '[network]\nno_proxy = "example.invalid"\n')
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(lambda: running_daemon._outside.config is not old)
        assert running_daemon._outside._former
        assert "password" in await get(directory)


@pytest.mark.usefixtures("app")
async def test_sigusr1_drops_the_keys_and_the_next_mint_reads_them_again(directory: Path, github: StandIn) -> None:
    async with running(directory) as running_daemon:

        def keys() -> int:
            signers = [key.signer for issuer in running_daemon._outside._key_holders for key in issuer._keys]
            return sum(signer._key is not None for signer in signers)  # type: ignore[attr-defined]  # a local one's

        token = (await get(directory))["password"]
        assert keys() == 1
        os.kill(os.getpid(), signal.SIGUSR1)
        await soon(lambda: keys() == 0)
        assert (await get(directory))["password"] == token
        running_daemon._broker.erase(token)
        assert (await get(directory))["password"] != token
        assert keys() == 1

    assert len(github.mints) == 2


async def test_a_locked_daemon_does_not_end_by_itself(
    directory: Path, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(app, '[daemon]\nidle_timeout = "1s"\n')
    async with running(directory) as running_daemon:
        await call(directory, "lock")
        monkeypatch.setattr(running_daemon._package, "successor", lambda: "9.9")
        looks = asyncio.Event()
        asyncio.get_running_loop().call_later(1.2, looks.set)
        await looks.wait()
        running_daemon._watch_idleness()
        assert "locked" in (await get(directory))["error"]
        assert not running_daemon._ending.is_set()
        await call(directory, "unlock")
        await soon(running_daemon._ending.is_set)


async def test_what_keeps_an_app_from_github_is_in_the_status(directory: Path, app: App) -> None:
    app.add_key()
    app.remove_key(app.private_key_pem)
    async with running(directory):
        assert "E22" in (await get(directory))["error"]
        assert (await call(directory, "status"))["result"]["apps"][0]["trouble"] == "E22"


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("method", ["get", "token"])
async def test_one_whose_inherited_proxy_is_gone_answers_and_ends(
    directory: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    make(directory)
    async with ending_by_itself(Daemon(str(directory), SystemClock())):
        if method == "get":
            assert "cannot connect to the proxy" in (await get(directory))["error"]
        else:
            assert (await call(directory, "token", repositories=["acme/rocket"]))["error"]["data"]["code"] == "E16"


async def test_one_whose_configured_proxy_is_gone_stays(directory: Path, app: App) -> None:
    configure(app, f'[network]\nproxy = "http://127.0.0.1:{closed_port()}"\n')
    async with running(directory) as staying:
        assert "cannot connect to the proxy" in (await get(directory))["error"]
        assert not staying._ending.is_set()


@pytest.mark.usefixtures("app")
async def test_one_that_was_replaced_by_another_version_answers_and_ends_without_revoking(
    directory: Path, github: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    described = tmp_path / "demo-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    make(directory)
    old = Daemon(str(directory), SystemClock(), package="demo")
    async with ending_by_itself(old):
        first = (await get(directory))["password"]
        assert not old._ending.is_set()

        shutil.move(described, tmp_path / "demo-1.1.dist-info")
        (tmp_path / "demo-1.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.1\n")

        assert (await get(directory))["password"] == first
    assert github.live_token(first) is not None


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("method", ["verify_app", "verify_key"])
@pytest.mark.parametrize("api", ["http://127.0.0.1:9", "https://x@github.example/", "ftp://x", ""])
async def test_an_api_without_tls_gets_no_jwt(directory: Path, method: str, api: str) -> None:
    signer = f"file:{config.config_dir() / 'key.pem'}"
    async with running(directory):
        answer = await call(directory, method, host="github.com", api=api, signer=signer, app_id=1)

    assert answer["error"]["data"]["code"] == "E01"


LATE_IMPORTS = """
import asyncio, json, sys
from pathlib import Path
from fakes_process import running, talk

async def main(directory, get):
    async with running(directory) as daemon:
        await daemon._outside._ready.wait()
        before = set(sys.modules)
        answer = await asyncio.to_thread(talk, directory / "git.sock", get)
        for method in ("status", "installations", "reload", "stop"):
            line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}).encode()
            assert b"error" not in await asyncio.to_thread(talk, directory / "control.sock", line)
        of_no_use = {"click", "pygments", "rich"} & set(sys.modules)
        print(b"password=" in answer, sorted(set(sys.modules) - before | of_no_use))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2].encode()))
"""


@pytest.mark.usefixtures("app")
def test_nothing_is_imported_once_it_is_ready(directory: Path) -> None:
    """In a process of its own: this one has long imported everything."""
    done = subprocess.run(
        [sys.executable, "-c", LATE_IMPORTS, directory, GET],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("True []\n", "")


async def test_a_loop_that_is_busy_is_watched_and_an_idle_one_is_not(directory: Path) -> None:
    async with running(directory) as busy:
        busy._watchdog.stop()
        busy._watchdog._turn = 0.05
        reader, writer = await asyncio.open_unix_connection(directory / "git.sock")
        await soon(lambda: busy._watchdog._next_look is not None)
        writer.write(GET)
        writer.write_eof()
        await reader.read()
        writer.close()
        await soon(lambda: busy._watchdog._next_look is None)


async def test_sighup_makes_missing_and_stolen_sockets_anew(directory: Path) -> None:
    async with running(directory):
        (directory / "control.sock").unlink()
        (directory / "git.sock").unlink()
        with git_cache(directory / "git.sock") as cache:
            os.kill(os.getpid(), signal.SIGHUP)
            await soon((directory / "control.sock").exists)
            assert cache.wait(5) == 0
        assert (await call(directory, "status"))["result"]["running"]
        assert await get(directory) == {"ghapp": "1"}


async def test_any_request_mends_the_other_socket(directory: Path) -> None:
    async with running(directory):
        (directory / "git.sock").unlink()
        await call(directory, "status")
        assert await get(directory) == {"ghapp": "1"}


async def test_one_whose_path_systemd_listens_at_ends_and_leaves_it_alone(directory: Path) -> None:
    make(directory)
    waiting = socket.socket(socket.AF_UNIX)
    async with ending_by_itself(Daemon(str(directory), SystemClock())):
        (directory / "git.sock").unlink()
        waiting.bind(str(directory / "git.sock"))
        waiting.listen()  # and nobody answers: systemd accepts nothing itself
        os.kill(os.getpid(), signal.SIGHUP)

    assert (directory / "git.sock").is_socket()
    waiting.close()


async def test_what_cannot_be_mended_is_logged(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(directory):
        shutil.rmtree(directory)
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(lambda: "cannot listen" in caplog.text)


async def test_a_squatter_on_the_socket_is_moved_aside(directory: Path) -> None:
    async with running(directory):
        (directory / "git.sock").unlink()
        (directory / "git.sock").write_text("precious")
        os.kill(os.getpid(), signal.SIGHUP)
        await soon((directory / "git.sock").is_socket)
        assert await get(directory) == {"ghapp": "1"}

    assert (directory / "git.sock.aside-1").read_text() == "precious"


async def test_one_that_ends_makes_no_socket_anew(directory: Path) -> None:
    async with running(directory) as ending:
        ending._leave()
        ending._on_hangup()
        ending._mend_sockets()
        assert not (directory / "git.sock").exists()


async def test_the_pid_is_in_the_lock_while_it_serves_and_no_longer(directory: Path) -> None:
    make(directory)
    lock = process.take_lock(str(directory))
    assert lock is not None
    async with running(directory, lock=lock) as serving:
        assert (directory / "daemon.lock").read_text() == f"{os.getpid()}\n"
        serving._leave()
        assert (directory / "daemon.lock").read_text() == ""
    os.close(lock)


async def test_it_ends_when_idle_and_not_while_somebody_is_there(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    configure_nothing('[daemon]\nidle_timeout = "1s"\n')
    make(directory)
    idle = Daemon(str(directory), SystemClock())
    task = asyncio.create_task(idle.run(lambda: None))
    await soon((directory / "control.sock").exists)
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(str(directory / "git.sock"))
    await soon(lambda: idle._listeners[0].connections == 1)
    idle._last_activity -= 100
    idle._watch_idleness()
    assert not idle._ending.is_set()
    silent.close()
    await soon(lambda: idle._listeners[0].connections == 0)

    await asyncio.wait_for(task, LIMIT)

    assert "idle for 1 s" in caplog.text
    assert not (directory / "git.sock").exists()


async def test_only_one_timer_watches_idleness_however_often_it_reloads(directory: Path) -> None:
    async with running(directory) as watched:
        first = watched._idle_timer
        await call(directory, "reload")
        assert first is not None
        assert first.cancelled()
        configure_nothing("[daemon]\nidle_timeout = 0\n")
        second = watched._idle_timer
        await call(directory, "reload")
        assert second is not None
        assert second.cancelled()


@pytest.mark.usefixtures("app")
async def test_an_app_that_cannot_be_set_up_stops_git_with_the_reason(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    async with running(directory):
        answer = await get(directory)

    assert "gone.pem does not exist" in answer["error"]
    assert answer["quit"] == "1"


@pytest.mark.usefixtures("app")
async def test_an_app_with_a_signer_that_cannot_be_opened_stops_git_with_the_reason(directory: Path) -> None:
    text = config.config_file().read_text().replace('"file:/', '"file:')
    config.config_file().write_text(text)
    async with running(directory):
        answer = await get(directory)

    assert "is not an absolute path" in answer["error"]
    assert answer["quit"] == "1"


async def test_every_question_to_an_unusable_app_is_answered_by_the_reason(app: App) -> None:
    unusable: Any = outside.Unusable(config.load(config.config_file()).apps[0], TlsFailed("no", hint="mend it"))

    assert unusable.app.name == app.slug
    questions = {"find_by_repository": 1, "find_by_owner": 1, "create_token": 1, "revoke_token": 1, "fingerprint": 0}
    for name, arguments in (questions | {"list_installations": 0}).items():
        with pytest.raises(TlsFailed, match="no"):
            await getattr(unusable, name)(*[None] * arguments)


@pytest.mark.usefixtures("app")
async def test_a_daemon_that_is_not_whole_says_so_and_ends(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = threading.Event()
    monkeypatch.setitem(sys.modules, "the_gate_of_this_test", asked)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"import the_gate_of_this_test as asked\nasked.wait({LIMIT})\nraise ImportError('no module of ours')\n"
    (tmp_path / "half_of_an_upgrade.py").write_text(module)
    monkeypatch.setattr(outside, "RIM", ("half_of_an_upgrade",))
    make(directory)
    broken = Daemon(str(directory), SystemClock())
    listening = asyncio.Event()
    task = asyncio.create_task(broken.run(listening.set))

    await asyncio.wait_for(listening.wait(), LIMIT)
    client = asyncio.create_task(get(directory))
    await soon(lambda: any(listener.connections for listener in broken._listeners))
    asked.set()
    await asyncio.wait_for(task, LIMIT)

    assert "ghapp is not whole: no module of ours" in (await client)["error"]


async def test_a_start_that_fails_leaves_no_socket(directory: Path) -> None:
    make(directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))  # enough for one socket
    try:
        with pytest.raises(OSError, match="Too many open files"):
            async with running(directory):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert not (directory / "git.sock").exists()


async def test_a_broken_config_is_the_reason_not_to_start(directory: Path) -> None:
    configure_nothing("nonsense = 1\n")

    with pytest.raises(ConfigError):
        async with running(directory):
            pass


def said_by_serve(directory: Path, ending: signal.Signals | None = signal.SIGTERM) -> tuple[int, list[str]]:
    said: list[str] = []

    def report(problem: str) -> None:
        said.append(problem)
        if not problem and ending and process.is_locked(str(directory)):
            os.kill(os.getpid(), ending)

    return serve(str(directory), report), said


def test_serving_ends_by_a_signal_and_gives_the_lock_back(directory: Path) -> None:
    assert said_by_serve(directory) == (0, [""])
    assert not process.is_locked(str(directory))
    assert said_by_serve(directory, signal.SIGINT) == (0, [""])


def test_a_second_daemon_leaves_the_first_its_sockets_and_ends_well(directory: Path) -> None:
    from ghapp import autostart  # noqa: PLC0415  # beside its use

    autostart.ensure(paths.git_socket())
    before = (directory / "git.sock").stat().st_ino

    assert said_by_serve(directory, None) == (0, [""])

    assert (directory / "git.sock").stat().st_ino == before
    assert process.complete(str(directory))


def test_reasons_not_to_serve_are_reported(directory: Path, tmp_path: Path) -> None:
    configure_nothing("nonsense = 1\n")
    code, said = said_by_serve(directory)
    assert code == 1
    assert "nonsense" in said[0]
    assert "(E51)\nedit " in said[0]

    code, said = said_by_serve(Path("relative"))
    assert (code, said[0].split("\n")[0]) == (1, "relative is not an absolute path (E43)")

    (tmp_path / "r" / "daemon.lock").mkdir(parents=True)
    (tmp_path / "r").chmod(0o700)
    code, said = said_by_serve(tmp_path / "r")
    assert (code, said) == (1, [f"cannot start in {tmp_path / 'r'}: Is a directory (E41)"])


def run_main(environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "ghapp.daemon"],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_in_the_foreground_it_logs_to_stderr_and_ends_at_sigterm(directory: Path) -> None:
    with run_main({}) as child:
        eventually(lambda: process.lock_holder(str(directory)))
        child.terminate()
        assert child.stderr is not None
        assert "serves, pid" in child.stderr.read()
        assert child.wait(LIMIT) == 0


def test_in_the_foreground_problems_are_errors_with_hints(capsys: pytest.CaptureFixture[str]) -> None:
    daemon._report_in_the_foreground("")
    daemon._report_in_the_foreground("no (E41)")
    daemon._report_in_the_foreground("no (E41)\ndo this")

    assert capsys.readouterr().err == "ghapp: error: no (E41)\n" * 2 + "ghapp: hint: do this\n"


def test_main_serves_where_the_paths_say(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_nothing("nonsense = 1\n")
    monkeypatch.setattr(process, "harden", lambda: None)  # it would change this process for good
    for module, name in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    before = logging.getLogger().handlers[:], logging.raiseExceptions

    assert daemon.main([]) == 1

    assert sys.excepthook.__module__ == "ghapp.logs"
    logging.getLogger().handlers[:], logging.raiseExceptions = before
    assert not process.is_locked(str(directory))


def test_threads_that_hang_are_not_waited_for() -> None:
    hang = threading.Event()
    threads = daemon.Threads(1)
    threads.submit(hang.wait, LIMIT)

    threads.shutdown(wait=True)

    hang.set()


async def test_a_daemon_whose_directory_was_removed_ends_and_leaves_its_successor_alone(
    directory: Path, app: App, tmp_path: Path
) -> None:
    configure(app)
    directory.mkdir(mode=0o700)
    lock = os.open(directory / "daemon.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        orphan = Daemon(str(directory), SystemClock(), lock=lock)
        serving = asyncio.create_task(orphan.run(lambda: None))
        await soon((directory / "git.sock").exists)
        directory.rename(tmp_path / "removed")
        directory.mkdir(mode=0o700)
        (directory / "daemon.lock").touch(mode=0o600)
        async with running(directory):
            inode = (directory / "git.sock").stat().st_ino

            orphan._watch_idleness()
            await serving

            assert (directory / "git.sock").stat().st_ino == inode
            assert "password" in await get(directory)
    finally:
        os.close(lock)


async def test_who_asks_for_an_owner_without_the_app_gets_the_link_to_install_it(directory: Path, app: App) -> None:
    configure(app)
    async with running(directory):
        refused = await call(directory, "token", repositories=["elsewhere/thing"])

    assert refused["error"]["data"]["code"] == "E24"
    assert refused["error"]["data"]["hint"].endswith("/apps/acme-bot/installations/new")
