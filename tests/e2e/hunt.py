"""Looking for secrets where none may be: every form in which one could lie, every place in which it could."""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from e2e.conftest import Machine
from standin.server import StandIn


WINDOW = 16  # bytes: shorter runs of a key occur by chance
STEP = WINDOW // 2
LEEWAY = 5  # seconds between a JWT's time and that of its request


def needles(secrets: Iterable[bytes]) -> set[bytes]:
    """Return every form in which a part of a secret could have been written: as it is, in hex, in base64."""
    found = set()
    for secret in secrets:
        for start in range(0, len(secret) - WINDOW + 1, STEP):
            part = secret[start : start + WINDOW]
            found |= {part, part.hex().encode()[:WINDOW]}
            for shift in range(3):  # base64 looks different at each of three offsets
                for encode in (base64.b64encode, base64.urlsafe_b64encode):
                    found.add(encode(secret[start + shift : start + shift + 15])[:WINDOW])
    return {needle for needle in found if len(needle) == WINDOW}


def found_in(content: bytes, hunted: set[bytes]) -> bool:
    """Tell whether any of the needles is there."""
    return any(content[start : start + WINDOW] in hunted for start in range(len(content) - WINDOW + 1))


def key_secrets(pem: bytes) -> list[bytes]:
    """Return what of a key must be nowhere: its numbers, and its file without the lines."""
    key = load_pem_private_key(pem, None)
    assert isinstance(key, RSAPrivateKey)
    numbers = key.private_numbers()
    _, *lines, _ = pem.split()[3:-3]
    integers = (numbers.p, numbers.q, numbers.d)
    return [b"".join(lines), *(number.to_bytes((number.bit_length() + 7) // 8, "big") for number in integers)]


def token_secrets(github: StandIn) -> list[bytes]:
    """Return what of every token must be nowhere; the first half is public: the app's number, and a JWT's header."""
    return [mint.token[len(mint.token) // 2 :].encode() for mint in github.mints]


def jwts(github: StandIn) -> set[str]:
    """Return every JWT that was received: made again, and compared with the hash that the journal keeps."""
    received = {request.token_sha256: request for request in github.requests if request.issuer is not None}
    made = set()
    for digest, request in received.items():
        app = next(app for app in github.apps.values() if request.issuer in {str(app.id), app.client_id})
        same = [
            jwt
            for now in range(int(request.time) - LEEWAY, int(request.time) + LEEWAY)
            for key in app.private_keys
            if _sha256(jwt := _jwt(key, str(request.issuer), now)) == digest
        ]
        assert same, "a JWT is not made as this module thinks"
        made |= set(same)
    return made


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _jwt(key: RSAPrivateKey, issuer: str, now: int) -> str:
    parts: tuple[object, ...] = ({"alg": "RS256", "typ": "JWT"}, {"iat": now - 60, "exp": now + 540, "iss": issuer})
    message = b".".join(_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    return (message + b"." + _base64url(key.sign(message, PKCS1v15(), SHA256()))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def jwt_secrets(github: StandIn) -> list[bytes]:
    """Return what of every JWT must be nowhere: its signature; without that it opens nothing."""
    return [jwt.rpartition(".")[2].encode() for jwt in jwts(github)]


def places(machine: Machine, *trees: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below `trees`, and argv and environ of every process that belongs to the machine."""
    for tree in trees:
        for path in tree.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()
    yield from processes(machine)


def processes(machine: Machine) -> Iterator[tuple[str, bytes]]:
    """Yield argv and environ of every process that belongs to the machine, as far as we may read them."""
    marker, daemon = str(machine.home).encode(), machine.daemon_pid()
    for process in Path("/proc").glob("[0-9]*"):
        contents = {}
        for name in ("cmdline", "environ"):
            try:
                contents[name] = (process / name).read_bytes()
            except OSError:
                continue
        # The daemon shows its environment to root alone.
        if process.name == str(daemon) or any(marker in content for content in contents.values()):
            yield from ((f"{process}/{name}", content) for name, content in contents.items())
