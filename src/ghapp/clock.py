"""The clocks of this machine."""

import time


# CLOCK_BOOTTIME counts suspend; time.monotonic() on Linux does not. macOS has no such name: there CLOCK_MONOTONIC
# counts sleep, unlike mach_absolute_time, which time.monotonic() uses.
_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The real clocks; tests pass others."""

    def wall(self) -> float:
        """Return Unix time."""
        return time.time()

    def boot(self) -> float:
        """Return the seconds since boot, suspend included."""
        return time.clock_gettime(_BOOT)
