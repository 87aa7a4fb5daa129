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
    columns = [
        ("OWNER", [entry["account"] for entry in found]),
        ("APP", [entry["app"] for entry in found]),
        ("HOST", [entry["host"] for entry in found]),
        ("REPOSITORIES", [entry["repository_selection"] for entry in found]),
        ("STATE", ["suspended" if entry["suspended"] else "active" for entry in found]),
        ("SETTINGS", [entry["html_url"] for entry in found]),
    ]
    if all(entry["host"] == config.GITHUB for entry in found):
        columns = [column for column in columns if column[0] != "HOST"]  # the links need the room
    print_table([title for title, _ in columns], zip(*(cells for _, cells in columns), strict=True))
