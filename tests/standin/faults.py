"""Answers that GitHub should not give, and sometimes does."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Literal


Surface = Literal["api", "git"]
LOOK_AGAIN = 0.005  # seconds; a threading.Event cannot be awaited, and a fault is held only in tests


@dataclass(eq=False, slots=True)
class Fault:
    """One scripted deviation; without `status` and `cut` the real answer follows the wait, perhaps edited."""

    method: str | None
    path: re.Pattern[str]
    surface: Surface | None
    times: int | None
    """`None`: until cleared."""
    status: int | None
    headers: Mapping[str, str]
    body: bytes
    content_length: int | None
    """A lie about the body's length; the connection is closed after the body."""
    cut: bool
    hold: Event | None
    delay: float
    edit: Callable[[Any], Any] | None
    """Changes the JSON of the real answer (API only)."""
    hits: int = 0
    reached: Event = field(default_factory=Event)
    """Set when the first request runs into this fault."""
    over: bool = False

    def matches(self, surface: Surface, method: str, path: str) -> bool:
        return (
            not self.over
            and self.surface in (None, surface)
            and self.method in (None, method)
            and self.path.search(path) is not None
        )

    async def wait(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        while self.hold is not None and not (self.hold.is_set() or self.over):  # noqa: ASYNC110  # see LOOK_AGAIN
            await asyncio.sleep(LOOK_AGAIN)


class Faults:
    """The script; the first fault that matches a request is used."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._faults: list[Fault] = []
        self._held: list[Fault] = []

    def add(
        self,
        path: str = "",
        *,
        method: str | None = None,
        surface: Surface | None = None,
        times: int | None = 1,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | str = b"",
        content_length: int | None = None,
        cut: bool = False,
        hold: Event | None = None,
        delay: float = 0.0,
        edit: Callable[[Any], Any] | None = None,
    ) -> Fault:
        """Script a fault for the next `times` requests whose path contains the regular expression `path`."""
        fault = Fault(
            method=method,
            path=re.compile(path),
            surface=surface,
            times=times,
            status=status,
            headers={name.lower(): value for name, value in (headers or {}).items()},
            body=body.encode() if isinstance(body, str) else body,
            content_length=content_length,
            cut=cut,
            hold=hold,
            delay=delay,
            edit=edit,
        )
        with self._lock:
            self._faults.append(fault)
        return fault

    def match(self, surface: Surface, method: str, path: str) -> Fault | None:
        """Take the fault for a request, and count it."""
        with self._lock:
            for fault in self._faults:
                if fault.matches(surface, method, path):
                    fault.hits += 1
                    self._held.append(fault)
                    if fault.hits == fault.times:
                        self._faults.remove(fault)
                    fault.reached.set()
                    return fault
        return None

    def clear(self) -> None:
        """Forget the script and let go of all that is held."""
        with self._lock:
            for fault in [*self._faults, *self._held]:
                fault.over = True
            self._faults.clear()
            self._held.clear()
