"""``ghapp status``."""

from datetime import timedelta

import click

from ghapp import config, service
from ghapp.cli.daemon_client import call_if_running
from ghapp.cli.output import FIRST, hint, json_option, print_json
from ghapp.errors import ConfigError


@click.command()
@json_option
def status(*, as_json: bool) -> None:
    """Show what is going on.

    Exits 0 also when no daemon runs: it starts by itself when git needs it.

    \b
    Example:
      ghapp status --json
    """
    found = call_if_running("status") or {
        "running": False,
        "pid": None,
        "version": None,
        "locked": False,
        "uptime": 0,
        "leases": 0,
        "mints": 0,
        "hits": 0,
        "rss_bytes": 0,
        "clock_offset": None,
        "apps": [],
    }
    if as_json:
        print_json(found)
        return
    if not found["running"]:
        who = "systemd starts it when git asks" if service.installed() else "git starts it when needed"
        click.echo(f"no daemon runs; {who}, 'ghapp daemon start' now")
        _show_configuration()
        return
    uptime = timedelta(seconds=int(found["uptime"]))
    offset = found["clock_offset"]
    click.echo(f"daemon   {found['version']}, pid {found['pid']}, up {uptime}, {found['rss_bytes'] / 1e6:.0f} MB")
    if found.get("locked"):
        click.echo("lock     locked, and answers nothing; ghapp unlock")
    click.echo(f"tokens   {found['leases']} live, {found['mints']} minted, {found['hits']} answered without minting")
    if found.get("grants"):
        click.echo(f"grants   {found['grants']} lent; ghapp grant list")
    click.echo(
        f"clock    {'not compared with GitHub yet' if offset is None else f'{_signed(offset)} s against GitHub'}"
    )
    for app in found["apps"]:
        trouble = f", in trouble: {app['trouble']}" if app["trouble"] else ""
        click.echo(f"app      {app['name']} on {app['host']}{trouble}")
    if not found["apps"]:
        click.echo(f"app      none; {FIRST}")


def _signed(offset: float) -> str:
    """Return whole seconds with their sign; 0 has none."""
    return f"{round(offset):+d}" if round(offset) else "0"


def _show_configuration() -> None:
    """Show what is there before a daemon runs, or keeps one from running."""
    try:
        apps = config.load(config.config_file()).apps
    except ConfigError as error:
        click.echo(f"config   broken: {error}")
        hint(error.hint)
        return
    for app in apps:
        click.echo(f"app      {app.name} on {app.host}")
    if not apps:
        click.echo(f"app      none; {FIRST}")
