"""RSA keys, made at run time and never written by the stand-in."""

from threading import Lock

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


class KeyPool:
    """Hands out different keys; a process makes each only once, because a key costs 0.1 s."""

    _made: list[RSAPrivateKey] = []  # noqa: RUF012  # shared by all pools of the process on purpose
    _lock = Lock()

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> RSAPrivateKey:
        with self._lock:
            if self._next == len(self._made):
                self._made.append(generate_private_key(public_exponent=65537, key_size=2048))
            self._next += 1
            return self._made[self._next - 1]


def pem(key: RSAPrivateKey) -> bytes:
    """Write a key as GitHub's download does: PKCS#1."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
