"""The log: what it must never contain, and that nothing about it stops the daemon."""

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin import keys, token_text

from ghapp import logs
from ghapp.installation import permissions_of
from ghapp.logs import Redacted


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("ghapp")
    libraries = {name: logging.getLogger(name).level for name in logs._LIBRARIES}
    before = (root.handlers[:], root.level, ours.level, logging.raiseExceptions)
    yield
    for name, level in libraries.items():
        logging.getLogger(name).setLevel(level)
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
        ("proxy-authorization: Basic abc", "INFO proxy-[secret]"),
        ("[(b'Authorization', b'token abc')]", "INFO [(b'[secret]"),
        ("{'authorization': 'token abc'}", "INFO {'[secret]"),
        ("authorization by somebody is missing", "INFO authorization by somebody is missing"),
        ("Basic eC1hY2Nlc3MtdG9rZW46Z2hz.", "INFO Basic [secret]."),
        ("ghu_" + "x" * 36, "INFO [secret]"),
        ("github_pat_" + "x" * 36, "INFO [secret]"),
        ("rsa1:AAAA-_AA==", "INFO [secret]=="),
        ("-----BEGIN PRIVATE KEY-----\\nMIIE\\nAAAA", "INFO [secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----MIIE", "INFO [secret]"),
        ("through http://me:word@proxy.example:3128", "INFO through http://[secret]@proxy.example:3128"),
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


SECRET = "hunter2-" + "q" * 12  # looks like nothing that the net knows

HOOKS = """
import asyncio, gc, logging, sys, threading
from pathlib import Path
from ghapp import logs

logs.configure(Path(sys.argv[1]), logging.DEBUG)
logs.install_hooks()
secret = sys.argv[2]

def fail(value):
    raise ValueError(value)

class Undead:
    def __del__(self):
        fail(secret)

async def forgotten():
    asyncio.get_running_loop().call_soon(fail, secret)
    task = asyncio.create_task(fail_later())
    await asyncio.wait({task})
    del task
    gc.collect()

async def fail_later():
    fail(secret)

match sys.argv[3]:
    case "main": fail(secret)
    case "thread":
        thread = threading.Thread(target=fail, args=(secret,))
        thread.start()
        thread.join()
    case "finaliser": Undead()
    case "loop": asyncio.run(forgotten())
"""


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("main", ["ERROR ended: ValueError in fail"]),
        ("thread", ["ERROR a thread ended: ValueError in fail"]),
        ("finaliser", ["ERROR not raised: ValueError in fail"]),
        ("loop", ["ERROR asyncio: ValueError in fail"] * 2),  # a callback, and a task that nobody waited for
    ],
)
def test_of_what_nobody_caught_class_and_place_are_told_and_no_value(
    tmp_path: Path, what: str, told: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOOKS, tmp_path, SECRET, what], capture_output=True, text=True, timeout=30, check=False
    )

    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == (1 if what == "main" else 0)
    lines = (tmp_path / "daemon.log").read_text().splitlines()
    assert [re.sub(r", <?\w+>?:\d+$", "", line.split(" ", 2)[2]) for line in lines] == told


def test_a_library_that_logs_an_exception_is_quoted_with_class_and_place_only() -> None:
    with pytest.raises(ValueError, match=SECRET) as caught:
        int(SECRET)
    information = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord("asyncio", logging.ERROR, "file", 1, "in %r", (SECRET,), information)

    told = Redacted("%(message)s").format(record)

    assert re.fullmatch(r"asyncio: ValueError in test_\w+, test_logs.py:\d+", told)


def test_of_a_librarys_text_the_first_line_is_kept() -> None:
    record = logging.LogRecord("asyncio", logging.ERROR, "file", 1, "Task was destroyed\ntask: %s", (SECRET,), None)

    assert Redacted("%(message)s").format(record) == "asyncio: Task was destroyed"


@pytest.mark.parametrize("name", ["asyncio", "httpcore.http11", "httpx", "keyring.backend"])
def test_libraries_stay_quiet_however_much_we_and_the_root_say(tmp_path: Path, name: str) -> None:
    logs.configure(tmp_path, logging.DEBUG)
    logging.getLogger().setLevel(logging.DEBUG)

    logging.getLogger(name).info("headers")

    assert (tmp_path / "daemon.log").read_text() == ""


def test_the_place_is_the_last_one_in_our_own_code() -> None:
    with pytest.raises(AttributeError) as caught:
        permissions_of({"contents": "write"} and 7)  # type: ignore[arg-type]  # that is what fails

    assert re.fullmatch(r"AttributeError in permissions_of, installation.py:\d+", logs.where(caught.value))


def test_an_exception_that_was_never_raised_has_no_place() -> None:
    assert logs.where(ValueError(SECRET)) == "ValueError"


def test_the_log_goes_to_a_file_of_its_own(tmp_path: Path) -> None:
    logs.configure(tmp_path / "state")

    logging.getLogger("ghapp.daemon").info("token %s", "ghs_" + "x" * 40)
    logging.getLogger("ghapp.daemon").debug("not this")
    logging.getLogger("httpx").info("nor this")
    logging.getLogger("httpx").warning("but this")

    lines = (tmp_path / "state" / "daemon.log").read_text().splitlines()
    assert [entry.split(" ", 2)[2] for entry in lines] == ["INFO token [secret]", "WARNING httpx: but this"]
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
