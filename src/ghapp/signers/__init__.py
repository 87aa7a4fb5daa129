"""Signers: the places where an app's key can be, each behind the broker's `Signer` protocol."""

from ghapp.broker import Signer
from ghapp.errors import ConfigError
from ghapp.keystore import KeyStore
from ghapp.routing import App
from ghapp.signers.file import FileSigner
from ghapp.signers.keyring import KeyringSigner


def open_signer(reference: str, app: App, store: KeyStore) -> Signer:
    """Return the signer for a reference of the configuration, such as ``file:/etc/ghapp.pem``.

    Nothing is read yet. Raises `ConfigError` for a reference of no known kind.
    """
    kind, _, rest = reference.partition(":")
    if kind == "file" and rest.startswith("/"):
        return FileSigner(rest)
    if kind == "file":
        raise ConfigError(f"the signer {reference} is not an absolute path", hint="write file:/path/to/key.pem")
    if kind == "keyring" and rest.startswith("SHA256:"):
        return KeyringSigner(app, rest, store)
    if kind == "keyring":
        raise ConfigError(f"the signer {reference} names no fingerprint", hint="write keyring:SHA256:...")
    raise ConfigError(f"there is no signer of the kind {kind}", hint="this version knows keyring: and file:")
