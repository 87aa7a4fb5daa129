"""GitHub's check of an app's JWT, with its error texts."""

import json
from collections.abc import Iterable
from typing import Any

import jwt

from standin.errors import ApiError
from standin.model import App


LONGEST = 600  # seconds that `exp` may lie ahead
UNDECODABLE = "A JSON web token could not be decoded"
NO_ISSUER = "Missing 'issuer' claim ('iss') in assertion"
STRANGE_ISSUER = "'Issuer' claim ('iss') must be an Integer"
UNKNOWN_APP = "Integration not found"
NO_KEY = "Integration must generate a public key"
ISSUED = "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
EXPIRED = (
    "'Expiration time' claim ('exp') must be a numeric value representing the future time at which "
    "the assertion expires"
)
TOO_FAR = "'Expiration time' claim ('exp') is too far in the future"


def verify(token: str, apps: Iterable[App], now: float, *, client_ids: bool) -> App:
    """Return the app that signed `token`; a JWT has no `kid`, so each of the app's keys is tried."""
    app = _issuer(_claims(token), apps, client_ids=client_ids)
    if not app.private_keys:
        raise ApiError(401, NO_KEY)
    _check_times(_verified_claims(token, app), now)
    return app


def unverified_issuer(token: str) -> str | int | None:
    """Tell who a JWT says it is from, for the journal."""
    try:
        issuer = _claims(token).get("iss")
    except ApiError:
        return None
    return issuer if isinstance(issuer, str | int) else None


def _claims(token: str) -> dict[str, Any]:
    try:
        unverified = jwt.PyJWS().decode_complete(token, options={"verify_signature": False})
        claims = json.loads(unverified["payload"])
    except (jwt.PyJWTError, ValueError):
        raise ApiError(401, UNDECODABLE) from None
    if unverified["header"].get("alg") != "RS256" or not isinstance(claims, dict):
        raise ApiError(401, UNDECODABLE)
    return claims


def _issuer(claims: dict[str, Any], apps: Iterable[App], *, client_ids: bool) -> App:
    issuer = claims.get("iss")
    if issuer is None:
        raise ApiError(401, NO_ISSUER)
    if isinstance(issuer, str) and not issuer.isdecimal():
        for app in apps:
            if client_ids and app.client_id == issuer:
                return app
        raise ApiError(401, STRANGE_ISSUER)
    if not isinstance(issuer, str | int) or isinstance(issuer, bool):
        raise ApiError(401, STRANGE_ISSUER)
    for app in apps:
        if app.id == int(issuer):
            return app
    raise ApiError(404, UNKNOWN_APP)


def _verified_claims(token: str, app: App) -> dict[str, Any]:
    for key in app.private_keys:
        try:
            payload = jwt.PyJWS().decode(token, key.public_key(), algorithms=["RS256"])
        except jwt.PyJWTError:
            continue
        claims: dict[str, Any] = json.loads(payload)
        return claims
    raise ApiError(401, UNDECODABLE)


def _check_times(claims: dict[str, Any], now: float) -> None:
    # A fast clock breaks both rules; reports of it quote the text about `exp`, so that one comes first.
    expires, issued = claims.get("exp"), claims.get("iat")
    if not isinstance(expires, int | float) or isinstance(expires, bool) or expires <= now:
        raise ApiError(401, EXPIRED)
    if expires > now + LONGEST:
        raise ApiError(401, TOO_FAR)
    if not isinstance(issued, int) or isinstance(issued, bool) or issued > now:
        raise ApiError(401, ISSUED)
