"""``ghapp leases``."""

import click

from ghapp.cli.daemon_client import call_if_running
from ghapp.cli.output import json_option, print_json, print_table, say


@click.command()
@json_option
def leases(*, as_json: bool) -> None:
    """List the tokens that live.

    A token is named by its SHA-256, as in GitHub's audit log, and never shown.

    \b
    Example:
      ghapp leases
    """
    found = call_if_running("leases") or []
    if as_json:
        print_json(found)
        return
    if not found:
        say("no token lives")
        return
    rows = []
    for lease in found:
        names = lease["repositories"]
        rows.append(
            (
                lease["id"],
                lease["owner"],
                names if names == "all" else ", ".join(names),
                ", ".join(f"{name}: {level}" for name, level in lease["permissions"].items()),
                lease["expires_at"],
                lease["uses"],
            )
        )
    print_table(("LEASE", "OWNER", "REPOSITORIES", "PERMISSIONS", "EXPIRES", "USES"), rows)
