"""A desktop session's keyring, real and private: dbus-daemon and gnome-keyring-daemon with a HOME of their own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


PASSWORD = b"correct horse"
NEEDED = ("dbus-daemon", "dbus-send", "gnome-keyring-daemon")
_DEADLINE = 10.0
_GLANCE = 0.01


class Session:
    """One session bus, and the keyring daemons started on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "runtime").mkdir(mode=0o700, parents=True)
        self._base = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "runtime")}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.bus = subprocess.Popen(
            ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1"],
            env=self._base,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.bus.stdout is not None
        self.address = self.bus.stdout.readline().decode().strip()

    @property
    def env(self) -> dict[str, str]:
        """What puts a program into this session."""
        return self._base | {"DBUS_SESSION_BUS_ADDRESS": self.address}

    def start_keyring(self, password: bytes | None) -> subprocess.Popen[bytes]:
        """Start the keyring daemon, unlocked with `password` (which makes the login keyring), or locked for None."""
        command = ["gnome-keyring-daemon", "--foreground", "--components=secrets"]
        daemon = subprocess.Popen(
            command if password is None else [*command, "--unlock"],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert daemon.stdin is not None
        daemon.stdin.write(password or b"")
        daemon.stdin.close()
        self._processes.append(daemon)
        self._wait_for_the_name()
        return daemon

    def _wait_for_the_name(self) -> None:
        end = time.monotonic() + _DEADLINE
        question = ("string:org.freedesktop.secrets",)
        call = ("dbus-send", "--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/")
        while time.monotonic() < end:
            asked = (*call, "org.freedesktop.DBus.GetNameOwner", *question)
            if subprocess.run(asked, env=self.env, capture_output=True, check=False).returncode == 0:
                return
            self.bus.poll()
        raise AssertionError("the keyring daemon did not take its name")

    @contextmanager
    def silent_prompter(self) -> Iterator[None]:
        """Own the name under which GNOME shows a keyring's question, and show nothing: a screen nobody looks at."""
        from jeepney.bus_messages import message_bus  # type: ignore[import-untyped]  # noqa: PLC0415  # not for the demo
        from jeepney.io.blocking import open_dbus_connection  # type: ignore[import-untyped]  # noqa: PLC0415  # as above

        with open_dbus_connection(bus=self.address) as connection:
            connection.send_and_get_reply(message_bus.RequestName("org.gnome.keyring.SystemPrompter"))
            yield

    def kill_keyrings(self) -> None:
        """End the keyring daemons that were started here, as a crash would."""
        for process in self._processes:
            process.kill()
            process.wait()

    def usernames(self) -> list[str]:
        """Return the usernames under which the open keyring holds something for ghapp."""
        code = (
            "import secretstorage; bus = secretstorage.dbus_init();"
            "print(*(i.get_attributes()['username']"
            " for i in secretstorage.search_items(bus, {'service': 'ghapp'})), sep='\\n')"
        )
        done = subprocess.run([sys.executable, "-c", code], env=self.env, capture_output=True, text=True, check=True)
        return done.stdout.split()

    def end(self) -> None:
        """End what was started here, the bus last: others that D-Bus activated end with it."""
        for process in [*self._processes, self.bus]:
            process.kill()
            process.wait()
        assert self.bus.stdout is not None
        self.bus.stdout.close()


def missing() -> list[str]:
    """Return which of the programs are not there."""
    return [name for name in NEEDED if shutil.which(name) is None]


@contextmanager
def session(home: Path) -> Iterator[Session]:
    """Give a session without a keyring daemon; skips where the programs are missing."""
    import pytest  # noqa: PLC0415  # the demo, which has none, uses only the class

    absent = missing()
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed")
    found = Session(home)
    try:
        yield found
    finally:
        found.end()
