"""An import that dies before or after any of its steps: the old key works or the new one, for whoever asks.

What `kill -9` leaves behind is what had been done until then: here nothing more is done from that moment on, not by
whoever cleans up either. `e2e/test_import_kill.py` kills real processes beside a real keyring, at moments of chance.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from standin import keys

from ghapp import config, keystore
from ghapp.cli import app as command
from ghapp.cli import key_import
from ghapp.errors import KeyMissing, KeyUnavailable
from ghapp.keystore import KeyStore
from ghapp.private_key import decode_key, encode_key, fingerprint, load_der, load_key
from ghapp.routing import App
from ghapp.signers.keyring import read_from


NUMBER, CLIENT = 4242, "Iv23liAcme"
FOUND = {"slug": "acme-bot", "client_id": CLIENT, "app_id": NUMBER, "installations": [], "fingerprint": ""}
BY_NUMBER: dict[str, Any] = {"client_id": "", "app_id": NUMBER}
BY_CLIENT_ID: dict[str, Any] = {"client_id": CLIENT, "app_id": None}
POOL = keys.KeyPool()
PEMS = [keys.pem(POOL.take()) for _ in range(2)]
NAMES = [fingerprint(load_key(pem, source="")) for pem in PEMS]
ACCOUNTS = [tuple(f"github.com/{number}/{name}" for number in (NUMBER, CLIENT)) for name in NAMES]


ALIVE = 10**9
UNKNOWN = "no app is configured"


class Killed(BaseException):
    """The end of the process."""


class Steps:
    """Counts what is done to the world, and ends all of it at a given moment."""

    def __init__(self) -> None:
        self.dies_at, self.seen = ALIVE, 0

    def moment(self) -> None:
        if self.seen >= self.dies_at:
            raise Killed
        self.seen += 1

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            self.moment()
            answer = function(*arguments, **options)
            self.moment()
            return answer

        return step


class Machine:
    """A keyring, a configuration and a daemon, which outlive the command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.kept: dict[str, bytes] = {}
        self.believed: App | None = None
        self.steps = Steps()
        self._directory = tmp_path
        self._parsed: dict[bytes, RSAPrivateKey] = {}
        watched = self.steps.watched
        monkeypatch.setattr(KeyStore, "_call", watched(self._keyring))
        monkeypatch.setattr(keystore, "load_der", self._once(load_der))  # to judge a key takes 20 ms
        self._load = self._once(load_key)
        monkeypatch.setattr(key_import, "load_key", self._load)
        monkeypatch.setattr(command, "call", watched(lambda *_, **__: FOUND))
        monkeypatch.setattr(command, "call_if_running", watched(lambda *_: self.reload()))
        monkeypatch.setattr(os, "fsync", watched(lambda _: None))
        for place, name in ((tempfile, "mkstemp"), (os, "fchmod")):
            monkeypatch.setattr(place, name, watched(getattr(place, name)))
        for name in ("replace", "unlink"):
            monkeypatch.setattr(pathlib.Path, name, watched(getattr(pathlib.Path, name)))

    def _once(self, parse: Callable[..., RSAPrivateKey]) -> Callable[..., RSAPrivateKey]:
        def parsed(data: bytes, *, source: str) -> RSAPrivateKey:
            known = bytes(data)
            if known not in self._parsed:
                self._parsed[known] = parse(data, source=source)
            return self._parsed[known]

        return parsed

    def _keyring(self, _: KeyStore, action: str, account: str, secret: bytes = b"", **__: bool) -> memoryview:
        if action == "set":
            self.kept[account] = secret
        elif account not in self.kept:
            raise KeyMissing("not there")
        elif action == "delete":
            del self.kept[account]
        else:
            return memoryview(bytearray(DER[self.kept[account]]))
        return memoryview(bytearray())

    def reload(self) -> None:
        """Let the daemon believe what is configured."""
        apps = config.load(config.config_file()).apps if config.config_file().exists() else ()
        self.believed = apps[0] if apps else None

    def import_key(self, number: int, given: dict[str, Any], signer: str | None = None) -> None:
        source = self._directory / "downloaded.pem"
        source.write_bytes(PEMS[number])
        command.add_app(key=str(source), signer=signer, host="github.com", **given)

    def begin_with(self, situation: "Situation", file: Path) -> None:
        """Have the old key, and what is left of an attempt to import the new one."""
        self.kept.clear()
        for path in (config.config_file(), file):
            path.unlink(missing_ok=True)
        if situation.before is not None:
            self.import_key(0, situation.before)
        self.reload()
        self.kept |= {account: LINES[account in ACCOUNTS[1]] for account in situation.left}

    def dies_while_it_imports(self, situation: "Situation", moment: int) -> bool:
        """Tell whether it was done before it died."""
        self.steps.seen, self.steps.dies_at = 0, moment
        try:
            self.import_key(1, situation.given, situation.signer)
        except Killed:
            return False
        finally:
            self.steps.dies_at = ALIVE
        return True

    def works(self) -> set[str]:
        """Return the keys that the daemon signs with, the one that runs and one that is started now."""
        running = self.believed
        self.reload()
        return {self._signs_with(app) for app in (running, self.believed)}

    def _signs_with(self, app: App | None) -> str:
        if app is None:
            return UNKNOWN
        for reference in app.keys:
            kind, _, rest = reference.partition(":")
            try:
                if kind == "keyring":
                    return fingerprint(read_from(KeyStore(), app, rest))
                return fingerprint(self._load(Path(rest).read_bytes(), source=rest))
            except (KeyUnavailable, OSError):
                continue
        return "none"


LINES = [encode_key(load_key(pem, source="")) for pem in PEMS]
DER = {line: decode_key(line) for line in LINES}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@dataclass(frozen=True)
class Situation:
    """How the old key came, and how the new one comes."""

    before: dict[str, Any] | None
    given: dict[str, Any]
    left: tuple[str, ...] = ()
    """What an import that was killed has left in the keyring."""
    signer: str | None = None


def situations(file: Path) -> list[Situation]:
    old, new = ACCOUNTS
    return [
        Situation(None, BY_NUMBER),
        Situation(None, BY_CLIENT_ID),
        Situation(BY_NUMBER, BY_NUMBER),
        Situation(BY_NUMBER, BY_CLIENT_ID),
        Situation(BY_CLIENT_ID, BY_NUMBER),
        Situation(BY_CLIENT_ID, BY_CLIENT_ID, left=new[1:]),
        Situation(BY_NUMBER, BY_CLIENT_ID, left=new),
        Situation(BY_NUMBER, BY_NUMBER, left=old),
        Situation(BY_NUMBER, BY_CLIENT_ID, signer=f"file:{file}"),
    ]


def test_an_import_that_dies_at_any_of_200_moments_leaves_the_old_key_or_the_new_one_working(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = 0
    for situation in situations(file := tmp_path / "new.pem"):
        old, new, moment = NAMES[0] if situation.before else UNKNOWN, NAMES[1], 0
        while True:
            machine.begin_with(situation, file)
            finished = machine.dies_while_it_imports(situation, moment)

            where = f"{situation}, moment {moment}"
            assert machine.works() <= {old, new}, where
            machine.import_key(1, situation.given, situation.signer)  # whoever comes back is done
            assert machine.works() == {new}, where
            if finished:
                break
            moment += 1
        moments += moment

    assert moments >= 200
    with capsys.disabled():
        print(f"\nan import died at {moments} moments")  # noqa: T201  # asked for
