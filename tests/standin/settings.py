"""The switches a test turns; every one is off, or as github.com is, by default."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Lag:
    """How long a fresh token fails: until the seconds and the requests (counted per surface) are over."""

    seconds: float = 0.0
    requests: int = 0
    rest_status: Literal[401, 403, 404] | None = None
    git_status: Literal[401, 403, 404] | None = None


@dataclass(slots=True)
class Settings:
    """What a test may change while the stand-in runs; each field is read once per request."""

    token_format: Literal["stateless", "legacy"] = "stateless"  # noqa: S105  # a format
    extra_token_length: int = 0
    token_lifetime: float = 3600.0
    expires_at_suffix: Literal["Z", "+00:00"] = "Z"
    literal_tokens: list[str] = field(default_factory=list)
    """Tokens to mint next, as they stand: LF, NUL or five kilobytes are possible."""
    edit_mint: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Changes the body of every 201, for instance into a wider one than was asked for."""

    lag: Lag = Lag()
    ip_allow_list: set[str] = field(default_factory=set)
    """Owners (lower case) whose allow list does not contain us."""
    no_contents_status: Literal[403, 404] = 403
    """What git sees with a token without `contents`; both were reported."""
    reject_every_post: bool = False

    api_versions: tuple[str, ...] = ("2026-03-10", "2022-11-28")
    retired_versions: tuple[str, ...] = ()
    hosts_without_client_ids: set[str] = field(default_factory=set)
    """Hosts that know only app IDs as issuer, as GHES <= 3.13 does."""

    primary_limit: int | None = None
    primary_status: Literal[403, 429] = 403
    secondary_limit: int | None = None
    """Points a minute per endpoint; GitHub's number is 900."""
    secondary_status: Literal[403, 429] = 403
    secondary_retry_after: int | None = 60
    login_attempts: int | None = None
    """Failed log-ins within a minute after which every log-in is refused."""

    signed_in: str = "octocat"
    """Who uses the web pages."""
