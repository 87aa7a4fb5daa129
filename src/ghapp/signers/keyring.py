"""``keyring:SHA256:…``: a key in the OS keyring, under the app's host and id and its own fingerprint."""

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from ghapp.errors import KeyMissing
from ghapp.keystore import KeyStore
from ghapp.routing import App
from ghapp.signers.local import LocalSigner


class KeyringSigner(LocalSigner):
    """Signs with a key of the keyring. The keyring is never allowed to ask a person here: git waits."""

    def __init__(self, app: App, name: str, store: KeyStore) -> None:
        super().__init__(lambda: read_from(store, app, name), "the keyring", expected=name)


def accounts(app: App, name: str) -> list[str]:
    """Return the usernames under which the keyring may hold the key `name` of `app`, the usual one first.

    The app's number is known only once GitHub was asked; a key stored before that is under the client ID.
    """
    ids = [str(app.app_id)] if app.app_id is not None else []
    if app.client_id:
        ids.append(app.client_id)
    return [f"{app.host}/{number}/{name}" for number in ids]


def read_from(store: KeyStore, app: App, name: str, *, interactive: bool = False) -> RSAPrivateKey:
    """Return the key `name` of `app`. Raises the keyring's errors."""
    *others, last = accounts(app, name)
    for account in others:
        try:
            return store.read(account, interactive=interactive)
        except KeyMissing:
            continue
    return store.read(last, interactive=interactive)
