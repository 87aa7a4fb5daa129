"""The process that speaks to the keyring, its parts called in this one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from session_bus import PASSWORD, Session, session

from ghapp import keyring_child
from ghapp.keyring_child import Word
from ghapp.private_key import encode_key, load_der


ACCOUNT = "github.com/4242/SHA256:one="


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    with session(tmp_path / "desktop") as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def serve(action: str, secret: str = "", *, interactive: bool = False, **changes: Any) -> bytes:
    request = {"action": action, "account": ACCOUNT, "backend": "", "interactive": interactive} | changes
    return keyring_child._serve(request, secret)


@pytest.mark.parametrize("interactive", [False, True])
def test_a_secret_is_stored_found_and_deleted(desktop: Session, *, interactive: bool) -> None:
    desktop.start_keyring(PASSWORD)
    key = rsa.generate_private_key(65537, 2048)

    assert serve("set", encode_key(key).decode(), interactive=interactive) == b""
    found = load_der(memoryview(serve("get", interactive=interactive)), source="x")
    assert encode_key(found) == encode_key(key)
    assert desktop.usernames() == [ACCOUNT]
    assert serve("delete", interactive=interactive) == b""
    for action in ("get", "delete"):
        with pytest.raises(Word, match="missing"):
            serve(action, interactive=interactive)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        ("LockedException", "locked"),
        ("PromptDismissedException", "dismissed"),
        ("SecretServiceNotAvailableException", "absent"),
        ("ItemNotFoundException", "missing"),
        ("Strange", "failed Strange"),
    ],
)
def test_what_the_library_raises_becomes_a_word(error: str, word: str) -> None:
    assert keyring_child._word_for(type(error, (Exception,), {})()) == word


@pytest.mark.parametrize(("found", "word"), [(None, "missing"), ("", "damaged"), ("hello", "damaged")])
def test_no_key_and_something_that_is_none_are_told_apart(found: str | None, word: str) -> None:
    with pytest.raises(Word, match=word):
        keyring_child._key_in(found)


@pytest.mark.parametrize("name", ["keyring.backends.null.Keyring", "os.path.nothing", "json.JSONDecoder", ".x"])
def test_a_backend_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(Word, match="refused"):
        serve("get", backend=name)


class Stdio:
    """Standard input with a request in it, and an output that is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: dict[str, Any], secret: str) -> None:
        given = tmp_path / "stdin"
        given.write_text(json.dumps(request) + "\n" + secret)
        self._file = given.open()
        monkeypatch.setattr("sys.stdin", self._file)

    def close(self) -> None:
        self._file.close()


def test_without_a_session_the_whole_answer_is_one_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent")
    request = {"action": "get", "account": ACCOUNT, "backend": "", "interactive": False}
    stdio = Stdio(monkeypatch, tmp_path, request, "")

    keyring_child.answer()

    stdio.close()
    assert capsys.readouterr().out == "absent\n"
