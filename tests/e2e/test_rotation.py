"""A key is replaced by another while git goes on: nobody sees it, whenever anything is killed."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e.conftest import PERMISSIONS, Machine
from fakes_process import kill, state_of, wait_for_a_change
from session_bus import PASSWORD, Session, session

from ghapp import config
from ghapp.private_key import fingerprint, load_key


DEADLINE = 60.0
ROUNDS = 3  # of git, between two steps of a rotation
KILLS = int(os.environ.get("GHAPP_TEST_KILLS", "4"))  # read here: the tests' own environment has none of ours
MINTS = 100  # an app has no more than 150 a minute


def name_of(pem: bytes) -> str:
    return fingerprint(load_key(pem, source="test"))


class Rotation:
    """One app with one configured key, and git in a loop."""

    def __init__(self, machine: Machine, *, where: str) -> None:
        self.machine = machine
        self.app = machine.github.add_app("acme-bot", PERMISSIONS)
        machine.github.install(self.app, "acme")
        self.old = self.app.private_key_pem
        self._in_files = where == "file"
        self._repositories = 0
        self.rounds = 0
        self.failures: list[str] = []
        command = ["app", "add", "--app-id", str(self.app.id), "--key", str(self._download(self.old))]
        machine.ghapp(*command, *self._signer("old.pem"))
        machine.ghapp("setup-git")
        machine.github.add_repository("acme/rocket")
        machine.git("clone", "https://github.com/acme/rocket.git")

    def _download(self, pem: bytes) -> Path:
        path = self.machine.home / "downloaded.pem"
        path.write_bytes(pem)
        return path

    def _signer(self, name: str) -> list[str]:
        return ["--signer", f"file:{self.machine.home / name}"] if self._in_files else []

    def add(self, pem: bytes) -> list[str]:
        """Return the command that adds a key."""
        file = f"{name_of(pem)[7:13].replace('/', '_')}.pem"
        return ["key", "add", str(self._download(pem)), "--app", "acme-bot", *self._signer(file)]

    def configured(self) -> list[str]:
        """Return what config.toml names; it can be read, whatever happened."""
        (app,) = config.load(self.machine.home / ".config/ghapp/config.toml").apps
        return list(app.keys)

    def fetch(self) -> None:
        """Fetch, with a token that is held or made, and list a repository that needs one of its own."""
        if self._repositories < MINTS:
            self._repositories += 1
            self.machine.github.add_repository(f"acme/r{self._repositories}")
        name = f"r{self._repositories}"
        for arguments in (["-C", "rocket", "fetch"], ["ls-remote", f"https://github.com/acme/{name}.git"]):
            done = self.machine.git(*arguments, check=False)
            if done.returncode != 0 or "ghapp" in done.stderr:
                self.failures.append(f"{arguments}: {done.returncode} {done.stderr}")
        self.rounds += 1

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Fetch in a loop, in a thread."""
        over = threading.Event()

        def loop() -> None:
            while not over.is_set() and not self.failures:
                self.fetch()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def go_on(self) -> None:
        """Wait until git has been asked some more times, from start to end."""
        target, pause, end = self.rounds + ROUNDS, threading.Event(), time.monotonic() + DEADLINE
        while self.rounds < target and not self.failures:
            assert time.monotonic() < end
            pause.wait(0.02)

    @property
    def rejections(self) -> int:
        return sum(request.status == 401 and request.issuer is not None for request in self.machine.github.requests)


@pytest.fixture
def desktop(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    """A session with an unlocked keyring, and the machine in it."""
    with session(tmp_path / "desktop") as found:
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = found.address
        found.start_keyring(PASSWORD)
        yield found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["file", "keyring"])
def test_git_never_fails_while_a_key_is_replaced(machine: Machine, where: str, request: pytest.FixtureRequest) -> None:
    desktop = request.getfixturevalue("desktop") if where == "keyring" else None
    rotation = Rotation(machine, where=where)
    machine.github.settings.login_attempts = 4  # that many wrong log-ins within a minute lock everyone out

    with rotation.fetching():
        rotation.go_on()
        new = rotation.app.add_key()
        machine.ghapp(*rotation.add(new))
        listed = json.loads(machine.ghapp("key", "list", "--json").stdout)
        assert [(entry["fingerprint"], entry["usable"]) for entry in listed] == [
            (name_of(rotation.old), True),
            (name_of(new), True),
        ]
        rotation.go_on()
        rotation.app.remove_key(rotation.old)
        rotation.go_on()
        assert rotation.rejections <= 1
        verified = machine.ghapp("key", "verify", check=False)
        assert verified.returncode == 1
        assert f"{name_of(rotation.old)} is rejected" in verified.stderr
        machine.ghapp("key", "remove", name_of(rotation.old))
        rotation.go_on()
        machine.ghapp("daemon", "stop", "--keep-tokens")
        rotation.go_on()
        machine.ghapp("key", "verify")

    assert rotation.failures == []
    assert rotation.rejections <= 2
    assert len(rotation.configured()) == 1
    if desktop is not None:
        assert [username.rpartition("SHA256:")[2] for username in desktop.usernames()] == [name_of(new)[7:]]


@pytest.mark.timeout(240)
def test_a_daemon_that_starts_with_a_dead_key_first_uses_the_other(machine: Machine) -> None:
    rotation = Rotation(machine, where="file")
    machine.ghapp(*rotation.add(rotation.app.add_key()))
    machine.ghapp("daemon", "stop")
    rotation.app.remove_key(rotation.old)

    for _ in range(ROUNDS):
        rotation.fetch()
    (machine.home / "old.pem").unlink()
    machine.ghapp("daemon", "restart")
    rotation.fetch()

    assert rotation.failures == []
    assert rotation.rejections == 1


# -- killed ------------------------------------------------------------------------------------------------------------


class KilledRotation(Rotation):
    """A rotation in a keyring, whose commands are killed."""

    def __init__(self, machine: Machine, desktop: Session) -> None:
        super().__init__(machine, where="keyring")
        self.desktop = desktop
        self.new = self.app.add_key()
        (keyring,) = (desktop.home / ".local/share/keyrings").glob("*.keyring")
        self.places = {"keyring": keyring, "config": machine.home / ".config/ghapp/config.toml"}

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["ghapp", *arguments],
            cwd=self.machine.work,
            env=self.machine.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def check(self) -> list[str]:
        """Return the configured keys, after seeing that each exists, and that this daemon and a new one work."""
        names = [reference.removeprefix("keyring:") for reference in self.configured()]
        stored = [username.rpartition("/SHA256:")[2] for username in self.desktop.usernames()]
        assert names
        assert {name.removeprefix("SHA256:") for name in names} <= {name.rpartition("SHA256:")[2] for name in stored}
        self.machine.ghapp("key", "verify")
        self.fetch()
        self.machine.ghapp("daemon", "stop", "--keep-tokens")
        self.fetch()
        assert self.failures == []
        return names


@pytest.fixture
def killed(machine: Machine, desktop: Session) -> KilledRotation:
    return KilledRotation(machine, desktop)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("changes", "count"),
    [(["keyring"], 1), (["keyring", "config"], 2)],
    ids=["the new key is stored", "the configuration names it"],
)
def test_an_addition_killed_right_after_a_step_leaves_keys_that_work(
    killed: KilledRotation, changes: list[str], count: int
) -> None:
    seen = {name: state_of(path) for name, path in killed.places.items()}
    adding = killed.start(*killed.add(killed.new))

    for change in changes:
        wait_for_a_change(killed.places[change], seen[change], adding)
    kill(adding)

    assert killed.check() == [name_of(killed.old), name_of(killed.new)][:count]
    killed.machine.ghapp(*killed.add(killed.new))  # again, and it is whole
    assert len(killed.check()) == 2


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "changes", [["config"], ["config", "keyring"]], ids=["the configuration names one", "the old key is gone"]
)
def test_a_removal_killed_right_after_a_step_leaves_the_other_key_working(
    killed: KilledRotation, changes: list[str]
) -> None:
    killed.machine.ghapp(*killed.add(killed.new))
    seen = {name: state_of(path) for name, path in killed.places.items()}
    removing = killed.start("key", "remove", name_of(killed.old))

    for change in changes:
        wait_for_a_change(killed.places[change], seen[change], removing)
    kill(removing)

    assert killed.check() == [name_of(killed.new)]
    if changes[1:]:
        assert len(killed.desktop.usernames()) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rotation_killed_at_any_moment_leaves_a_key_that_works(
    killed: KilledRotation, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert killed.start(*killed.add(killed.new)).wait(DEADLINE) == 0
    whole = time.monotonic() - began
    outcomes = {"before": 0, "after": 0, "finished": 0}

    for number in range(KILLS):
        before = killed.configured()
        is_there = f"keyring:{name_of(killed.new)}" in before
        process = killed.start(*(["key", "remove", name_of(killed.new)] if is_there else killed.add(killed.new)))
        try:
            process.wait(timeout=2 * whole * number / max(1, KILLS - 1))  # a loaded machine takes longer
            outcomes["finished"] += 1
        except subprocess.TimeoutExpired:
            kill(process)
        killed.check()
        outcomes["before" if killed.configured() == before else "after"] += 1

    assert outcomes["before"] > 0
    with capsys.disabled():
        print(f"\n{KILLS} kills spread over {2 * whole:.2f} s: {outcomes}")  # noqa: T201  # asked for
