"""``ghapp unlock``."""

import click

from ghapp import config
from ghapp.cli.daemon_client import call_if_running
from ghapp.cli.output import counted, say
from ghapp.keystore import KeyStore
from ghapp.signers.keyring import read_from


@click.command(short_help="Load each key now; the keyring may ask you.")
def unlock() -> None:
    """Load each key now, so that the keyring can ask you for its password.

    git never makes the keyring ask: nobody may be there to answer. After
    'ghapp lock' this is what lets ghapp answer again.

    \b
    Example:
      ghapp unlock
    """
    found = config.load(config.config_file())
    store = KeyStore(found.keyring_backend)
    loaded = 0
    for app in found.apps:
        for reference in app.keys:
            if reference.startswith("keyring:"):
                read_from(store, app, reference.removeprefix("keyring:"), interactive=True)
                loaded += 1
    answer = call_if_running("unlock")
    if answer and answer["was_locked"]:
        say("unlocked")
    say(f"{counted(loaded, 'key')} can be read" if loaded else "no key is in a keyring")
