"""``file:PATH``: a PEM that somebody else put there, such as a mounted secret of Docker or Kubernetes."""

import os
import stat
import threading

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from jwt.algorithms import RSAAlgorithm

from ghapp.errors import KeyUnavailable
from ghapp.private_key import MAX_PEM, fingerprint, load_key


_RS256 = RSAAlgorithm(RSAAlgorithm.SHA256)


class FileSigner:
    """Signs with the key in a file, which is read when it is needed and judged each time it is read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._key: RSAPrivateKey | None = None
        self._fingerprint = ""
        self._lock = threading.Lock()

    def fingerprint(self) -> str:
        """Return the fingerprint, also after the key itself was dropped from memory."""
        return self._fingerprint or fingerprint(self._load())

    def sign(self, message: bytes) -> bytes:
        """Return the RS256 signature."""
        return _RS256.sign(message, self._load())

    def forget(self) -> None:
        """Drop the key."""
        self._key = None

    def _load(self) -> RSAPrivateKey:
        with self._lock:
            key = self._key  # once: forget() takes no lock, it must not wait for a slow disk
            if key is None:
                key = load_key(read_key_file(self._path), source=self._path)
                name = fingerprint(key)
                if self._fingerprint not in {"", name}:
                    # Leases and the answer of GET /app belong to the key that was there first.
                    raise KeyUnavailable(f"{self._path} holds another key than before", hint="ghapp daemon restart")
                self._key, self._fingerprint = key, name
            return key


def read_key_file(path: str) -> bytes:
    """Read `path` if nobody else may read it: opened once, and judged by what was opened, not by its name.

    A symlink's target is judged, so mounted secrets pass. Group bits are fine when root owns the file (systemd,
    Kubernetes' fsGroup). Raises `KeyUnavailable`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = "ghapp app show NAME shows where the key is expected"
        raise KeyUnavailable(f"cannot open {path}: {error.strerror}", hint=hint) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyUnavailable(f"{path} is not a regular file", hint="give the path of a PEM file")
        if status.st_uid not in {0, os.geteuid()}:
            raise KeyUnavailable(f"{path} belongs to user {status.st_uid}", hint=f"sudo chown $(id -u) '{path}'")
        forbidden = 0o007 if status.st_uid == 0 else 0o077
        if status.st_mode & forbidden:
            raise KeyUnavailable(
                f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"chmod 600 '{path}'",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            pem = file.read(MAX_PEM + 1)
    except OSError as error:
        raise KeyUnavailable(f"cannot read {path}: {error.strerror}", hint="see dmesg") from None
    finally:
        os.close(descriptor)
    if len(pem) > MAX_PEM:
        raise KeyUnavailable(f"{path} is larger than {MAX_PEM} bytes", hint="give the path of a PEM file")
    return pem
