"""The daemon's log: few lines, an allow-list of facts, and a last net under secrets."""

import contextlib
import copy
import logging
import logging.handlers
import re
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType


MAX_LOG = 1024 * 1024  # bytes a file; two are kept

_LIBRARIES = ("asyncio", "httpcore", "httpx", "keyring", "secretstorage", "jeepney")
_OURS = "ghapp"

_SECRETS = re.compile(
    r"gh[a-z]_[A-Za-z0-9._-]{16,}"  # tokens: the new form has dots and dashes, and 40 public characters in front
    r"|github_pat_\w{16,}"
    r"|eyJ[\w-]+\.[\w-]+\.[\w-]+"  # JWTs
    r"|-----BEGIN[^-]*PRIVATE KEY-----.*"  # to the end: lines may be broken, or \n written out
    r"|rsa1:[\w-]+"
    r"|(?i:authorization\W{0,2}[:,=].*)"  # a header, also in the repr of a dict or a tuple
    r"|(?i:(?<=\bbasic ))[\w+/=-]{16,}"
    r"|(?<=://)[^/\s@]+(?=@)",  # user and password of a proxy
    re.DOTALL,
)

log = logging.getLogger(__name__)


class Redacted(logging.Formatter):
    """Formats a record without what looks like a secret, and without any traceback: its lines hold values.

    What a library says about an exception may hold values too, so of that only class and place are kept.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        record = copy.copy(record)  # a file that turns over formats each record twice
        foreign = record.name.partition(".")[0] != _OURS
        if foreign and record.exc_info and record.exc_info[1] is not None:
            record.msg, record.args = f"{record.name}: {where(record.exc_info[1])}", None
        elif foreign:
            record.msg, record.args = f"{record.name}: {record.getMessage().partition(chr(10))[0]}", None
        record.exc_info = record.exc_text = record.stack_info = None
        line = redacted(super().format(record))
        return "".join(character if character.isprintable() else "?" for character in line)


def redacted(text: str) -> str:
    """Return `text` without what looks like a secret."""
    return _SECRETS.sub("[secret]", text)


def where(error: BaseException) -> str:
    """Return an exception's class and the place in our code that it went through last; none of its values."""
    frames = [
        (code.co_filename, line, code.co_name)
        for code, line in ((frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__))
    ]
    if not frames:
        return type(error).__name__
    ours = [frame for frame in frames if "/ghapp/" in frame[0]]
    path, line, name = (ours or frames)[-1]
    return f"{type(error).__name__} in {name}, {Path(path).name}:{line}"


def install_hooks() -> None:
    """Let what nobody caught be told by class and place: Python's own hooks print values, and to stderr."""
    sys.excepthook = _on_exception
    threading.excepthook = lambda given: _tell("a thread ended", given.exc_value)
    sys.unraisablehook = lambda given: _tell("not raised", given.exc_value)


def _on_exception(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    _tell("ended", error)


def _tell(what: str, error: BaseException | None) -> None:
    log.error("%s: %s", what, "no exception" if error is None else where(error))


def descriptor() -> int:
    """Return the descriptor that the log is written to, as it is now: a full file is followed by another."""
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "stream", None)
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                return int(stream.fileno())
    return 2


def configure(directory: Path | None, level: int = logging.INFO) -> None:
    """Log to ``daemon.log`` in `directory`, or to stderr for None; a full disk never stops the daemon."""
    logging.raiseExceptions = False
    handler: logging.Handler = logging.StreamHandler()
    if directory is not None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(directory / "daemon.log", maxBytes=MAX_LOG, backupCount=1)
        except OSError:
            handler = logging.NullHandler()
    handler.setFormatter(Redacted("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger(_OURS).setLevel(level)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _LIBRARIES:  # also where somebody sets the root to DEBUG: what they say there holds headers and reprs
        logging.getLogger(name).setLevel(logging.WARNING)
