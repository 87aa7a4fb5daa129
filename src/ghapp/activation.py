"""systemd's side of our life: sockets that it opened and keeps while daemons come and go, and what we tell it.

sd_listen_fds(3) and sd_notify(3), by hand: each is a few variables and one datagram.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from ghapp.errors import DaemonFailed


NAMES = ("git", "control")
FIRST = 3  # SD_LISTEN_FDS_START
_ASKING = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_UNSET = (*_ASKING, "LISTEN_PIDFDID")  # a child of ours must not take them for its own
_NOTIFY_LIMIT = 1.0  # seconds for a datagram; a manager whose queue is full must not hold up who asks for credentials


def is_activated(environment: MutableMapping[str, str]) -> bool:
    """Tell whether somebody says to have passed us sockets."""
    return any(name in environment for name in _ASKING)


def take_sockets(environment: MutableMapping[str, str], first: int = FIRST) -> dict[str, socket.socket]:
    """Return the listening sockets that were passed, by name; {} if none were. Takes the variables away.

    Anything but exactly ours is refused: a descriptor that is not what we think would be served to whoever holds its
    other end. Raises `DaemonFailed`.
    """
    if not is_activated(environment):
        return {}
    given = {name: environment.pop(name, "") for name in _UNSET}
    if given["LISTEN_PID"] != str(os.getpid()):
        raise DaemonFailed(
            f"LISTEN_PID is {_shown(given['LISTEN_PID'])}, and this is process {os.getpid()}: its sockets are not ours",
            hint=f"unset {' '.join(_ASKING)}",
        )
    names = given["LISTEN_FDNAMES"].split(":")
    if given["LISTEN_FDS"] != str(len(NAMES)) or sorted(names) != sorted(NAMES):
        found = f"LISTEN_FDS={_shown(given['LISTEN_FDS'])}, LISTEN_FDNAMES={_shown(given['LISTEN_FDNAMES'])}"
        raise _refused(f"two sockets are needed, named {' and '.join(NAMES)}, not {found}")
    for descriptor in range(first, first + len(names)):  # all, before any is judged: they arrive inheritable
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)  # noqa: FBT003  # positional in the library
    with contextlib.ExitStack() as refused:
        sockets = {name: refused.enter_context(_adopt(first + number, name)) for number, name in enumerate(names)}
        refused.pop_all()
    return sockets


def _adopt(descriptor: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _refused(f"descriptor {descriptor} ({name}) is not a socket: {error.strerror}") from None
    problem = ""
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        problem = "is not a unix stream socket"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        problem = "does not listen"
    elif not isinstance(address := sock.getsockname(), str) or not address.startswith("/"):
        problem = "has no path"
    if problem:
        sock.close()
        raise _refused(f"descriptor {descriptor} ({name}) {problem}")
    return sock


def _refused(problem: str) -> DaemonFailed:
    return DaemonFailed(problem, hint="systemctl --user cat ghapp.service ghapp.socket ghapp-control.socket")


def _shown(value: str) -> str:
    return ascii(value[:60]) if value else "unset"


Notify = Callable[[str], None]


def silent(state: str) -> None:
    """Tell nobody."""


def take_notify(environment: MutableMapping[str, str]) -> Notify:
    """Return the function that tells the manager which started us our state; takes the variable away."""
    address = environment.pop("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return silent
    if address.startswith("@"):
        address = "\0" + address[1:]

    def notify(state: str) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_NOTIFY_LIMIT)
            sock.sendto(state.encode(), address)

    return notify


def reloading() -> str:
    """Return what is told when a reload begins; the moment lets systemd match it to its signal."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
