"""The option --host. Apart from `output`: reading the configuration is not what every command pays for."""

import click

from ghapp import config
from ghapp.credential import normal_host


def check_host(_ctx: click.Context, _param: click.Parameter, host: str | None) -> str | None:
    """Return a host in normal form; a click callback."""
    if host is None:
        return None
    found = normal_host(host)
    if not config.is_host(found):
        raise click.BadParameter(f"{host!r} is not a host's name, such as {config.GITHUB}")
    return found
