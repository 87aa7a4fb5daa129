"""The time GitHub believes it is."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate


@dataclass(slots=True)
class Clock:
    """The real time plus an offset that a test sets; one float, so no lock is needed."""

    offset: float = 0.0

    def now(self) -> float:
        return time.time() + self.offset

    def set_offset(self, seconds: float) -> None:
        self.offset = seconds

    def advance(self, seconds: float) -> None:
        self.offset += seconds

    def http_date(self) -> str:
        return formatdate(self.now(), usegmt=True)


def iso(moment: float, suffix: str = "Z") -> str:
    """Write a time as GitHub does: UTC, whole seconds."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%S") + suffix


def from_iso(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
