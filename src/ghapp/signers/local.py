"""A key that is in this process while it is used, wherever it came from."""

import threading
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from jwt.algorithms import RSAAlgorithm

from ghapp.errors import KeyUnavailable
from ghapp.private_key import fingerprint


_RS256 = RSAAlgorithm(RSAAlgorithm.SHA256)


class LocalSigner:
    """Signs with a key that is loaded when it is needed and dropped when it was not needed for a while."""

    def __init__(self, load: Callable[[], RSAPrivateKey], source: str, expected: str = "") -> None:
        self._load_key = load
        self._source = source
        self._key: RSAPrivateKey | None = None
        self._fingerprint = expected
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
                key = self._load_key()
                name = fingerprint(key)
                if self._fingerprint not in {"", name}:
                    # Leases and the answer of GET /app belong to the key that was there first.
                    raise KeyUnavailable(f"{self._source} holds another key than before", hint="ghapp daemon restart")
                self._key, self._fingerprint = key, name
            return key
