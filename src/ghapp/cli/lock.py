"""``ghapp lock``."""

import click

from ghapp.cli.daemon_client import call
from ghapp.cli.output import counted, hint, json_option, print_json, say, say_error


@click.command(short_help="Hold no key and no token, and answer nothing.")
@click.option("--revoke", is_flag=True, help="End the tokens at GitHub, too.")
@json_option
def lock(*, revoke: bool, as_json: bool) -> int:
    """Drop keys and tokens from memory and answer nothing, until 'ghapp unlock'.

    Grants and 'ghapp exec' get nothing either. What was minted lives on at
    GitHub until its hour is over, unless --revoke ends it now.

    The lock is the daemon's, in its memory: neither idleness nor an upgrade
    ends a locked daemon, but one that is started anew is not locked.

    \b
    Example:
      ghapp lock --revoke
    """
    found = call("lock", revoke=revoke)
    if as_json:
        print_json(found)
    else:
        ended = f"; revoked {counted(found['revoked'], 'token')}" if found["revoked"] else ""
        say(f"locked{ended}")
    if found["not_revoked"]:
        say_error(f"{counted(found['not_revoked'], 'token')} could not be revoked")
        hint("ghapp revoke --all")
        return 1
    return 0
