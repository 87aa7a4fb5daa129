"""The log: what it must never contain, and that nothing about it stops the daemon."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin import keys, token_text

from ghapp import logs
from ghapp.logs import Redacted


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("ghapp")
    before = (root.handlers[:], root.level, ours.level, logging.raiseExceptions)
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before


def line(message: object, *arguments: object, error: bool = False) -> str:
    information = None
    try:
        int("ghs_" + "e" * 40)
    except ValueError:
        information = sys.exc_info() if error else None
    record = logging.LogRecord("ghapp", logging.INFO, "file", 1, message, arguments, information)
    return Redacted("%(levelname)s %(message)s").format(record)


def jwt() -> str:
    return "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJJdjIzIn0.c2lnbmF0dXJl-_x"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("app %s serves", "INFO app %s serves"),
        ("no credential: E11", "INFO no credential: E11"),
        (f"Bearer {jwt()}.", "INFO Bearer [secret]."),
        ("Authorization: token abc\nmore", "INFO [secret]"),
        ("proxy-authorization: Basic abc", "INFO [secret]"),
        ("gho_" + "x" * 36, "INFO [secret]"),
        ("ghs_short", "INFO ghs_short"),
        ("two\nlines\x1b[2J\u2028", "INFO two?lines?[2J?"),
    ],
)
def test_a_line_holds_no_secret_and_is_one_line(message: str, expected: str) -> None:
    assert line(message) == expected


@pytest.mark.parametrize("form", ["stateless", "legacy"])
def test_a_token_of_either_form_is_redacted_whole(form: str) -> None:
    token = token_text.make(41001, 1.8e9, 3600, form, 0)  # type: ignore[arg-type]  # a literal

    assert line("minted %s.", token) in {"INFO minted [secret]", "INFO minted [secret]."}


def test_a_key_is_redacted_whole() -> None:
    pem = keys.pem(keys.KeyPool().take()).decode()

    assert line("read %s", pem) == "INFO read [secret]"


def test_a_traceback_is_never_written_because_its_lines_hold_values() -> None:
    assert line("it failed", error=True) == "INFO it failed"


def test_the_log_goes_to_a_file_of_its_own(tmp_path: Path) -> None:
    logs.configure(tmp_path / "state")

    logging.getLogger("ghapp.daemon").info("token %s", "ghs_" + "x" * 40)
    logging.getLogger("ghapp.daemon").debug("not this")
    logging.getLogger("httpx").info("nor this")
    logging.getLogger("httpx").warning("but this")

    lines = (tmp_path / "state" / "daemon.log").read_text().splitlines()
    assert [entry.split(" ", 2)[2] for entry in lines] == ["INFO token [secret]", "WARNING but this"]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_without_a_directory_the_log_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(None, logging.DEBUG)

    logging.getLogger("ghapp").debug("hello")

    assert capsys.readouterr().err.endswith(" DEBUG hello\n")


def test_a_directory_that_cannot_be_used_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")

    logs.configure(tmp_path / "state")

    logging.getLogger("ghapp").info("nobody hears this")
    assert not logging.raiseExceptions


def test_a_record_that_cannot_be_formatted_is_no_reason_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(tmp_path)

    logging.getLogger("ghapp").info("%d", "ghs_" + "x" * 40)

    assert capsys.readouterr().err == ""
    assert (tmp_path / "daemon.log").read_text() == ""
