"""Signers: the places where an app's key can be, each behind the broker's `Signer` protocol."""

from typing import NoReturn

from ghapp.errors import ConfigError, KeyUnavailable
from ghapp.keystore import KeyStore
from ghapp.protocols import Signer
from ghapp.routing import App
from ghapp.signers.file import FileSigner
from ghapp.signers.keyring import KeyringSigner


class Unopened:
    """A signer that the configuration names wrongly, beside others: whoever asks it goes on to the next."""

    def __init__(self, problem: ConfigError) -> None:
        self._problem = problem

    def _refuse(self) -> NoReturn:
        raise KeyUnavailable(self._problem.message, hint=self._problem.hint)

    def fingerprint(self) -> str:
        """Raise why."""
        self._refuse()

    def sign(self, message: bytes) -> bytes:  # noqa: ARG002  # the protocol's
        """Raise why."""
        self._refuse()

    def forget(self) -> None:
        """Do nothing: there is no key."""


def open_signers(app: App, store: KeyStore) -> list[Signer]:
    """Return a signer for each of the app's keys. Raises `ConfigError` if none of them can be one, or there is none."""
    found: list[Signer] = []
    problems: list[ConfigError] = []
    for reference in app.keys:
        try:
            found.append(open_signer(reference, app, store))
        except ConfigError as error:
            problems.append(error)
            found.append(Unopened(error))
    if not app.keys:
        raise ConfigError(f"the app {app.name} has no key", hint=f"ghapp key add FILE --app {app.name}")
    if len(problems) == len(app.keys):
        raise problems[0]
    return found


def open_signer(reference: str, app: App, store: KeyStore) -> Signer:
    """Return the signer for a reference of the configuration, such as ``file:/etc/ghapp.pem``.

    Nothing is read yet. Raises `ConfigError` for a reference of no known kind.
    """
    kind, _, rest = reference.partition(":")
    if kind == "file" and rest.startswith("/"):
        return FileSigner(rest, app.name)
    if kind == "file":
        raise ConfigError(f"the signer {reference} is not an absolute path", hint="write file:/path/to/key.pem")
    if kind == "keyring" and rest.startswith("SHA256:"):
        return KeyringSigner(app, rest, store)
    if kind == "keyring":
        raise ConfigError(f"the signer {reference} names no fingerprint", hint="write keyring:SHA256:...")
    raise ConfigError(f"there is no signer of the kind {kind}", hint="this version knows keyring: and file:")
