"""The daemon's log: few lines, an allow-list of facts, and a last net under secrets."""

import logging
import logging.handlers
import re
from pathlib import Path


MAX_LOG = 1024 * 1024  # bytes a file; two are kept

_SECRETS = re.compile(
    r"gh[a-z]_[A-Za-z0-9._-]{16,}"  # tokens: the new form has dots and dashes, and 40 public characters in front
    r"|eyJ[\w-]+\.[\w-]+\.[\w-]+"  # JWTs
    r"|-----BEGIN[^-]*PRIVATE KEY-----.*"
    r"|(?i:authorization|proxy-authorization):.*",
    re.DOTALL,
)


class Redacted(logging.Formatter):
    """Formats a record without what looks like a secret, and without any traceback: its lines hold values."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        record.exc_info = record.exc_text = record.stack_info = None
        line = _SECRETS.sub("[secret]", super().format(record))
        return "".join(character if character.isprintable() else "?" for character in line)


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
    logging.getLogger("ghapp").setLevel(level)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # httpx, httpcore and asyncio say no more than that
