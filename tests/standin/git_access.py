"""What a credential may do to a repository over git, and GitHub's texts when it may not."""

import base64
import binascii

from standin.errors import GitRefusalError
from standin.mint import SUSPENDED
from standin.model import Repository, Token
from standin.world import World


INVALID = "Invalid username or token. Password authentication is not supported for Git operations."
NOT_FOUND = "Repository not found."
NO_WRITE = "Write access to repository not granted."
NO_ANONYMOUS_WRITE = "No anonymous write access."
NOT_ALLOWED = (
    "The '{login}' organization has an IP allow list enabled, and your IP address is not permitted to "
    "access this resource."
)


def basic(authorization: str | None) -> tuple[str, str] | None:
    """Read a Basic authorization; `None` if it is another one or unreadable."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        username, colon, password = base64.b64decode(value, validate=True).decode("latin-1").partition(":")
    except binascii.Error:
        return None
    return (username, password) if colon else None


def check(world: World, repository: Repository | None, authorization: str | None, *, write: bool) -> Token | None:
    """Return the token that opens the repository, `None` for a public one, or raise the refusal."""
    if authorization is None:
        if repository is not None and not repository.private and not write:
            return None
        raise GitRefusalError(401, NO_ANONYMOUS_WRITE if write and repository else NOT_FOUND)
    token = _token(world, authorization)
    _check_installation(world, token)
    if repository is None:
        raise GitRefusalError(404, NOT_FOUND)
    if not token.reaches(repository):
        return _foreign(token, repository, write=write)
    if not token.allows("contents", "read"):
        return _without_contents(world, token, repository, write=write)
    if write and not token.allows("contents", "write"):
        raise GitRefusalError(403, NO_WRITE)
    return token


def _token(world: World, authorization: str) -> Token:
    pair = basic(authorization)
    # The username is ignored; a token in its place, without a password, is not a log-in.
    token = None if pair is None else world.live_token(pair[1])
    if token is None:
        raise GitRefusalError(401, INVALID)
    before, token.git_requests = token.git_requests, token.git_requests + 1
    status = world.settings.lag.git_status
    if status is not None and world.lags(token, before):
        raise GitRefusalError(status, {401: INVALID, 403: NO_WRITE, 404: NOT_FOUND}[status])
    return token


def _check_installation(world: World, token: Token) -> None:
    login = token.installation.account.login
    if token.installation.suspended_at is not None:
        raise GitRefusalError(403, SUSPENDED)
    if login.lower() in world.settings.ip_allow_list:
        raise GitRefusalError(403, NOT_ALLOWED.format(login=login))


def _foreign(token: Token, repository: Repository, *, write: bool) -> Token:
    if repository.private:
        raise GitRefusalError(404, NOT_FOUND)
    if write:
        bot = f"{token.installation.app.slug}[bot]"
        raise GitRefusalError(403, f"Permission to {repository.full_name}.git denied to {bot}.")
    return token


def _without_contents(world: World, token: Token, repository: Repository, *, write: bool) -> Token:
    if repository.private or write:
        status = world.settings.no_contents_status
        raise GitRefusalError(status, NO_WRITE if status == 403 else NOT_FOUND)
    return token
