"""An import of another key, killed at any moment: the old key works or the new one does."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.conftest import PERMISSIONS, Machine
from fakes_process import kill, state_of, wait_for_a_change
from session_bus import PASSWORD, Session, session

from ghapp import config


DEADLINE = 30.0
KILLS = int(os.environ.get("GHAPP_TEST_KILLS", "4"))  # 200 take ten minutes; read here: tests see none of ours
Stop = Callable[[], bool]


@pytest.fixture
def desktop(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    """A session with an unlocked keyring, and the machine in it."""
    with session(tmp_path / "desktop") as found:
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = found.address
        found.start_keyring(PASSWORD)
        yield found


class Rotation:
    """One app with two keys that GitHub accepts both, and the means to switch between them and to look."""

    def __init__(self, machine: Machine, desktop: Session) -> None:
        self.machine = machine
        self.desktop = desktop
        github = machine.github
        self.app = github.add_app("acme-bot", PERMISSIONS)
        github.install(self.app, "acme")
        self._pems = [self.app.private_key_pem, self.app.add_key()]
        self._repositories = 0
        self.names: list[str] = []
        for pem in reversed(self._pems):
            machine.ghapp(*self.command(pem)[1:])
            self.names.insert(0, self.configured())
        machine.ghapp("setup-git")

    @property
    def config_file(self) -> Path:
        return self.machine.home / ".config/ghapp/config.toml"

    def configured(self) -> str:
        """Return the one key that config.toml names; it can be read, whatever happened."""
        (app,) = config.load(self.config_file).apps
        (reference,) = app.keys
        return reference.removeprefix("keyring:")

    def command(self, pem: bytes, *, by_client_id: bool = False) -> list[str]:
        key = self.machine.home / "downloaded.pem"
        key.write_bytes(pem)
        identity = ["--client-id", self.app.client_id] if by_client_id else ["--app-id", str(self.app.id)]
        return ["ghapp", "app", "add", *identity, "--key", str(key)]

    def import_the_other(self, *, by_client_id: bool = False) -> subprocess.Popen[bytes]:
        """Start to import the key that is not configured.

        With the client ID there are more steps: the key is stored a second time, under the app's number.
        """
        pem = self._pems[1 - self.names.index(self.configured())]
        return subprocess.Popen(
            self.command(pem, by_client_id=by_client_id),
            cwd=self.machine.work,
            env=self.machine.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def tidy(self) -> None:
        """Remove from the keyring what a killed import left there; else the next one finds it and goes on with it."""
        code = (
            "import secretstorage, sys; bus = secretstorage.dbus_init();"
            "[i.delete() for i in secretstorage.search_items(bus, {'service': 'ghapp'})"
            " if not i.get_attributes()['username'].endswith(sys.argv[1])]"
        )
        self.machine.run("python", "-c", code, self.configured())

    def check(self) -> str:
        """Return the configured key, after seeing that it exists and that the running daemon and a new one work."""
        name = self.configured()
        assert name in self.names
        assert any(username.endswith(name) for username in self.desktop.usernames())
        self.machine.ghapp("installations")  # what the running daemon believes, with a key read just then
        self.list_remote()
        self.machine.ghapp("daemon", "stop", "--keep-tokens")
        self.list_remote()
        return name

    def list_remote(self) -> None:
        """Let git ask for a repository of its own: a token that is held already would prove nothing."""
        self._repositories += 1
        name = f"r{self._repositories}"
        self.machine.github.add_repository(f"acme/{name}")
        assert "refs/heads/main" in self.machine.git("ls-remote", f"https://github.com/acme/{name}.git").stdout


@pytest.fixture
def rotation(machine: Machine, desktop: Session) -> Rotation:
    return Rotation(machine, desktop)


@pytest.mark.timeout(1800)
def test_an_import_killed_at_any_moment_leaves_the_old_key_or_the_new_one_working(
    rotation: Rotation, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert rotation.import_the_other(by_client_id=True).wait(DEADLINE) == 0
    whole = time.monotonic() - began
    old = new = finished = 0

    for number in range(KILLS):
        before = rotation.configured()
        if number % 2:
            rotation.tidy()
        importing = rotation.import_the_other(by_client_id=number % 4 > 1)
        try:
            importing.wait(timeout=whole * number / (KILLS - 1))
            finished += 1
        except subprocess.TimeoutExpired:
            kill(importing)
        after = rotation.check()
        old, new = old + (after == before), new + (after != before)

    assert old > 0
    with capsys.disabled():
        print(  # noqa: T201  # asked for
            f"\n{KILLS} kills spread over {whole:.2f} s: old key {old}, new key {new}, {finished} were not in time"
        )


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [(["keyring"], "old"), (["keyring", "config"], "new"), (["keyring", "config", "keyring"], "new")],
    ids=["the new key is stored", "the configuration is switched", "the old key is gone"],
)
def test_an_import_killed_right_after_a_step_leaves_a_key_that_works(
    rotation: Rotation, changes: list[str], expected: str
) -> None:
    """The moments that matter, each made out by what it changes on disk."""
    (keyring,) = (rotation.desktop.home / ".local/share/keyrings").glob("*.keyring")
    places = {"keyring": keyring, "config": rotation.config_file}
    before = rotation.configured()
    seen = {name: state_of(path) for name, path in places.items()}
    importing = rotation.import_the_other()

    for change in changes:
        wait_for_a_change(places[change], seen[change], importing)
        if change == "config":  # the new key is stored and was read back: what changes now is another step
            seen["keyring"] = state_of(keyring)
    kill(importing)

    assert (rotation.check() == before) == (expected == "old")
    if changes[2:]:
        assert not any(username.endswith(before) for username in rotation.desktop.usernames())


def test_an_import_that_nobody_kills_leaves_only_the_new_key(rotation: Rotation) -> None:
    before = rotation.configured()

    assert rotation.import_the_other().wait(DEADLINE) == 0

    after = rotation.check()
    assert after != before
    assert [username.endswith(after) for username in rotation.desktop.usernames()] == [True]
