"""``ghapp installations``."""

import click

from ghapp import config
from ghapp.cli.daemon_client import call
from ghapp.cli.output import hint, json_option, print_json, print_table, say


@click.command()
@json_option
def installations(*, as_json: bool) -> None:
    """List where the apps are installed, asked of GitHub now.

    \b
    Example:
      ghapp installations
    """
    found = call("installations")
    if as_json:
        print_json(found)
        return
    if not found and not config.load(config.config_file()).apps:
        say("no app is registered")
        hint("ghapp app add --help")
        return
    if not found:
        say("no app of yours is installed anywhere")
        return
    rows = (
        (
            entry["account"],
            entry["app"],
            entry["host"],
            entry["repository_selection"],
            "suspended" if entry["suspended"] else "active",
            entry["html_url"],
        )
        for entry in found
    )
    print_table(("OWNER", "APP", "HOST", "REPOSITORIES", "STATE", "SETTINGS"), rows)
