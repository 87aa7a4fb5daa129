"""The text of an installation token, in today's and in the old format."""

import base64
import json
import secrets
import string
from typing import Literal


TODAY = 520  # characters of a token, as GitHub's notice says "about"
HEADER = {"alg": "ES256", "typ": "JWT"}  # constant: with a five-digit app id the first 46 characters are too
SIGNATURE_BYTES = 64


def make(app_id: int, now: float, lifetime: float, token_format: Literal["stateless", "legacy"], extra: int) -> str:
    if token_format == "legacy":  # noqa: S105  # a format's name
        letters = string.ascii_letters + string.digits
        return "ghs_" + "".join(secrets.choice(letters) for _ in range(36 + extra))
    start = f"ghs_{app_id}_{_segment(HEADER)}."
    signature = _signature()
    room = (TODAY + extra - len(start) - 1 - len(signature)) * 3 // 4
    claims = {
        "aud": "github",
        "exp": int(now + lifetime),
        "iat": int(now),
        "iss": "standin",
        "jti": secrets.token_hex(16),
        "ver": 1,
    }
    # GitHub fills `ctx` with what the token may do; here it only fills the length.
    padding = max(0, room - len(_compact({**claims, "ctx": ""})))
    return f"{start}{_segment({**claims, 'ctx': secrets.token_hex(padding)[:padding]})}.{signature}"


def _signature() -> str:
    # A quarter of the random ones have no hyphen, the character that redaction patterns forget.
    while "-" not in (text := _base64url(secrets.token_bytes(SIGNATURE_BYTES))):
        pass
    return text


def _segment(value: dict[str, object] | dict[str, str]) -> str:
    return _base64url(_compact(value))


def _compact(value: dict[str, object] | dict[str, str]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
