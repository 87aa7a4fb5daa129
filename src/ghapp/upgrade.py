"""Whether another version was installed over the one that runs."""

import os
from importlib import metadata


class Installation:
    """The installed package: its version is read again when the directory that names it has changed."""

    def __init__(self, name: str) -> None:
        self._name = name
        found = metadata.distribution(name)
        self.version = found.version
        """The one that runs."""
        self._recorded = found.read_text("RECORD") is not None
        self._place = str(found.locate_file(""))
        self._stamp = self._look()

    def successor(self) -> str:
        """Return the version that was installed since, once it is whole; "" for none.

        A package that was removed has no successor: what runs goes on, for nothing could follow it.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return ""
        try:
            found = metadata.distribution(self._name)
            if not found.read_text("METADATA") or (self._recorded and found.read_text("RECORD") is None):
                return ""  # an installer writes RECORD last; a distribution's packages have none
            version = found.version
        except (metadata.PackageNotFoundError, OSError):
            return ""
        self._stamp = stamp
        return "" if version == self.version else version

    def _look(self) -> int:
        """Return when an entry came or went beside the package; a µs, for it is asked at every request."""
        try:
            return os.stat(self._place).st_mtime_ns  # noqa: PTH116  # quicker, and not a path of ours
        except OSError:
            return 0
