"""Keys in a real keyring, and every way in which a keyring fails told apart."""

import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from keyring.backends.SecretService import Keyring as LibraryBackend
from session_bus import PASSWORD, Session, session

from ghapp import config, keystore
from ghapp.errors import KeyMissing, KeyringAbsent, KeyringFailed, KeyringLocked, KeyUnavailable
from ghapp.keystore import KeyStore
from ghapp.private_key import encode_key, fingerprint


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session, and this process in it."""
    with session(tmp_path / "desktop") as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def account(key: rsa.RSAPrivateKey) -> str:
    return f"github.com/4242/{fingerprint(key)}"


def is_same(one: rsa.RSAPrivateKey, other: rsa.RSAPrivateKey) -> bool:
    """Compare what the keys do: the private exponent has several right values."""
    signatures = [key.sign(b"message", PKCS1v15(), SHA256()) for key in (one, other)]
    return signatures[0] == signatures[1] and encode_key(one) == encode_key(other)


# -- a real keyring ------------------------------------------------------------------------------------------------


def test_a_key_is_stored_read_and_deleted(desktop: Session, key: rsa.RSAPrivateKey) -> None:
    desktop.start_keyring(PASSWORD)
    store = KeyStore()

    store.write(account(key), key)

    assert is_same(store.read(account(key)), key)
    store.delete(account(key))
    store.delete(account(key))
    with pytest.raises(KeyMissing):
        store.read(account(key))


class Keeping(KeyStore):
    """The keyring; what a key was read from can be looked at afterwards."""

    def _call(self, action: str, account: str, secret: bytes = b"", *, interactive: bool) -> memoryview:
        answer = super()._call(action, account, secret, interactive=interactive)
        KEPT.append((bytes(answer), answer))
        return answer


KEPT: list[tuple[bytes, memoryview]] = []


def test_what_a_key_was_read_from_is_overwritten(desktop: Session, key: rsa.RSAPrivateKey) -> None:
    desktop.start_keyring(PASSWORD)
    KeyStore().write(account(key), key)
    KEPT.clear()

    Keeping().read(account(key))

    ((came, left),) = KEPT
    assert len(came) > 1000
    assert bytes(left) == bytes(len(came))


def test_a_key_under_another_keys_name_is_refused(desktop: Session, key: rsa.RSAPrivateKey) -> None:
    desktop.start_keyring(PASSWORD)
    store = KeyStore()
    store.write("github.com/1/SHA256:another=", key)

    with pytest.raises(KeyUnavailable, match="another key"):
        store.read("github.com/1/SHA256:another=")


@pytest.mark.parametrize("value", ["rsa1:AAAA", "hello"])
def test_something_else_under_a_keys_name_is_named_without_being_shown(
    desktop: Session, key: rsa.RSAPrivateKey, value: str
) -> None:
    desktop.start_keyring(PASSWORD)
    LibraryBackend().set_password("ghapp", account(key), value)  # type: ignore[no-untyped-call]  # has no types

    with pytest.raises(KeyUnavailable, match="damaged") as caught:
        KeyStore().read(account(key))

    assert "--key FILE" in caught.value.hint
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


class Junk(KeyStore):
    """A keyring whose child answers with what is no key."""

    def _call(self, action: str, account: str, secret: bytes = b"", *, interactive: bool) -> memoryview:  # noqa: ARG002
        JUNK[:] = b"secret junk"
        return memoryview(JUNK)


JUNK = bytearray(11)


def test_what_is_no_key_is_overwritten_and_the_command_that_mends_it_is_named() -> None:
    with pytest.raises(KeyUnavailable, match="not an app's private key") as caught:
        Junk().read("github.com/7/SHA256:a")

    assert caught.value.hint == "ghapp app add --app-id 7 --key FILE"
    assert (bytes(JUNK), caught.value.__cause__, caught.value.__context__) == (bytes(11), None, None)


@pytest.mark.parametrize("display", ["", ":99"])
def test_a_locked_keyring_is_named_at_once_and_nobody_is_asked(
    desktop: Session, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch, *, display: str
) -> None:
    """With a display, gnome-keyring would show a question there, and wait for ever."""
    unlocked = desktop.start_keyring(PASSWORD)
    KeyStore().write(account(key), key)
    unlocked.kill()
    unlocked.wait()
    if display:
        monkeypatch.setenv("DISPLAY", display)
    desktop.start_keyring(None)
    began = time.monotonic()

    with desktop.silent_prompter() if display else nullcontext(), pytest.raises(KeyringLocked):
        KeyStore().read(account(key))

    assert time.monotonic() - began < 6


def test_a_keyring_that_hangs_is_given_up(desktop: Session, key: rsa.RSAPrivateKey) -> None:
    daemon = desktop.start_keyring(PASSWORD)
    daemon.send_signal(signal.SIGSTOP)
    began = time.monotonic()

    with pytest.raises(KeyUnavailable, match="did not answer"):
        KeyStore().read(account(key))

    assert 4.5 < time.monotonic() - began < 6


@pytest.mark.parametrize("word", ["locked", "dismissed"])
def test_whoever_could_not_unlock_is_not_sent_in_a_circle(word: str) -> None:
    error = keystore._error(word, "github.com/7/SHA256:x", interactive=True)

    assert "--signer file:PATH" in error.hint
    assert "ghapp unlock" not in error.hint


@pytest.mark.parametrize(
    ("account", "command"),
    [
        ("github.com/4242/SHA256:a/b", "ghapp app add --app-id 4242 --key FILE"),
        ("ghe.example/Iv23x/SHA256:a", "ghapp app add --client-id Iv23x --host ghe.example --key FILE"),
        ("github.com/7/SHA256:a/b", "ghapp key add FILE --app acme-bot"),
        ("github.com/Iv23y/SHA256:a/b", "ghapp key add FILE --app acme-bot"),
        ("ghe.example/7/SHA256:a", "ghapp app add --app-id 7 --host ghe.example --key FILE"),
    ],
)
def test_the_command_that_stores_a_missing_key_anew_is_named(account: str, command: str) -> None:
    table = {"name": "acme-bot", "app_id": 7, "client_id": "Iv23y", "keys": ["file:/k.pem"]}
    config.put_app(config.config_file(), table)

    assert keystore._error("missing", account, interactive=False).hint == command
    for word in ("locked", "dismissed", "absent", "refused", "failed x"):
        assert f": {command} --signer file:PATH" in keystore._error(word, account, interactive=True).hint


def test_a_key_that_is_missing_has_its_hint_whatever_the_configuration_says() -> None:
    config.config_file().parent.mkdir(parents=True)
    config.config_file().write_text("[")

    error = keystore._error("missing", "github.com/7/SHA256:a", interactive=False)

    assert error.hint == "ghapp app add --app-id 7 --key FILE"


def test_without_a_session_bus_there_is_no_keyring(key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent")

    with pytest.raises(KeyringAbsent):
        KeyStore().read(account(key))


@pytest.mark.parametrize(
    "backend",
    [
        "keyring.backends.null.Keyring",
        "keyring.backends.fail.Keyring",
        "keyring.backends.chainer.ChainerBackend",
        "keyrings.alt.file.PlaintextKeyring",
        "os.path",
        "json.JSONDecoder",
        "nonsense",
    ],
)
def test_a_backend_that_would_not_protect_the_key_is_refused_by_name(key: rsa.RSAPrivateKey, backend: str) -> None:
    with pytest.raises(KeyringFailed, match=backend):
        KeyStore(backend).write(account(key), key)


def test_the_environment_does_not_choose_the_backend(key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent")

    with pytest.raises(KeyringAbsent):
        KeyStore().write(account(key), key)
