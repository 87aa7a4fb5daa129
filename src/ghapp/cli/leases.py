"""``ghapp leases``."""

import click

from ghapp.cli.daemon_client import call_if_running
from ghapp.cli.output import json_option, print_json, print_table, say


@click.command()
@json_option
def leases(*, as_json: bool) -> None:
    """List the tokens that live.

    --json names each by its SHA-256, as in GitHub's audit log; none is shown.

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
                lease.get("grant") or "-",
            )
        )
    columns = ("LEASE", "OWNER", "REPOSITORIES", "PERMISSIONS", "EXPIRES", "USES", "GRANT")
    width = len(columns) if any(lease.get("grant") for lease in found) else len(columns) - 1
    print_table(columns[:width], [row[:width] for row in rows])
