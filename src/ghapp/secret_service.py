"""The freedesktop Secret Service (GNOME keyring, KWallet, KeePassXC), without prompts where nobody can answer them.

keyring's own backend unlocks by a prompt that waits for ever on a screen that nobody looks at; git waits behind it.
"""

import secretstorage
from jeepney.io.blocking import DBusConnection  # type: ignore[import-untyped]  # has no types
from keyring.backends.SecretService import Keyring as LibraryBackend
from keyring.errors import KeyringLocked
from secretstorage.defines import SS_PATH
from secretstorage.util import PROMPT_IFACE, SERVICE_IFACE, DBusAddressWrapper


PROMPT_LIMIT = 110.0  # seconds for a person to type; the parent kills us at 120
_NO_PROMPT = "/"


class SecretService(LibraryBackend):
    """keyring's backend with its one question, "is it unlocked?", asked our way."""

    def __init__(self, *, interactive: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library has no types there
        self._interactive = interactive

    def get_preferred_collection(self) -> secretstorage.Collection:
        """Return the default collection, unlocked. Raises `KeyringLocked`, and secretstorage's own exceptions."""
        bus = secretstorage.dbus_init()
        if self._interactive:
            collection = secretstorage.get_default_collection(bus)
            if collection.is_locked() and collection.unlock(timeout=PROMPT_LIMIT):
                raise secretstorage.PromptDismissedException("the prompt was dismissed")
        else:
            collection = secretstorage.collection.get_collection_by_alias(bus, "default")
            if collection.is_locked():
                _unlock_quietly(bus, collection)
        if collection.is_locked():
            raise KeyringLocked("the collection is locked")
        return collection


def _unlock_quietly(bus: DBusConnection, collection: secretstorage.Collection) -> None:
    """Unlock what needs no password: GNOME marks a collection without one locked until it is asked to unlock."""
    service = DBusAddressWrapper(SS_PATH, SERVICE_IFACE, bus)
    _, prompt = service.call("Unlock", "ao", [collection.collection_path])
    if prompt != _NO_PROMPT:
        DBusAddressWrapper(prompt, PROMPT_IFACE, bus).call("Dismiss", "")
