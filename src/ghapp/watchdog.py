"""Ends a process whose loop no longer turns: git's own client has no deadline, and would wait for ever.

The clock that counts is a thread of C's (`faulthandler`), which neither the loop nor the interpreter's lock can hold
up. Nothing ticks while nothing is under way.
"""

import asyncio
import faulthandler
from collections.abc import Callable


PATIENCE = 25.0  # seconds without a turn of the loop; what one request may take in all
TURN = 5.0  # seconds between two looks; the end comes between PATIENCE - TURN and PATIENCE after the last turn


class Watchdog:
    """Watches the running loop for as long as there is something under way."""

    def __init__(
        self,
        busy: Callable[[], bool],
        descriptor: Callable[[], int],
        *,
        patience: float = PATIENCE,
        turn: float = TURN,
    ) -> None:
        """`busy` says whether anything is under way, `descriptor` where to write the place that did not go on.

        What is written are names of files and functions, no values.
        """
        self._busy = busy
        self._descriptor = descriptor
        self._patience = patience
        self._turn = turn
        self._next_look: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Watch from now on; called for everything that wakes the loop, and free of charge while it watches."""
        if self._next_look is None:
            faulthandler.dump_traceback_later(self._patience, exit=True, file=self._descriptor())
            self._next_look = asyncio.get_running_loop().call_later(self._turn, self._look)

    def stop(self) -> None:
        """Watch no longer."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        self.stop()
        if self._busy():
            self.watch()
