"""The option --host. Apart from `output`: reading the configuration is not what every command pays for."""

import click

from ghapp import config
from ghapp.cli.output import FIRST
from ghapp.credential import normal_host
from ghapp.errors import ConfigError, NotInstalled


def check_host(_ctx: click.Context, _param: click.Parameter, host: str | None) -> str | None:
    """Return a host in normal form; a click callback."""
    if host is None:
        return None
    found = normal_host(host)
    if not config.is_host(found):
        raise click.BadParameter(f"{host!r} is not a host's name, such as {config.GITHUB}")
    return found


def require_app(host: str) -> None:
    """Raise `ConfigError` where no app is registered at all, and `NotInstalled` where none is for `host`."""
    hosts = {app.host for app in config.load(config.config_file()).apps}
    if not hosts:
        raise ConfigError("no app is registered", hint=FIRST)
    if host not in hosts:
        raise NotInstalled(f"no app is registered for {host}", hint="ghapp app list")
