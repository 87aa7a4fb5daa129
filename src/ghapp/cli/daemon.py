"""``ghapp daemon``."""

import contextlib
import os
import signal

import click

from ghapp import activation, autostart, config, paths, process, service
from ghapp.cli.daemon_client import ask, call, call_if_running, started_error
from ghapp.cli.output import Group, counted, hint, json_option, print_json, say, warn
from ghapp.cli.status import status
from ghapp.errors import DaemonFailed, GhappError


END_LIMIT = 15.0  # seconds: revoking may take 5, requests in flight 2
TERM_LIMIT = 5.0  # seconds after SIGTERM; one that still runs then hangs, and is killed


@click.group(cls=Group)
def daemon() -> None:
    """Run, start, stop the daemon; git starts it by itself.

    \b
    Example:
      ghapp daemon restart
    """


@daemon.command()
def run() -> None:
    """Run the daemon in the foreground, until Ctrl-C.

    \b
    Example:
      ghapp daemon run
    """
    from ghapp import daemon as ghapp_daemon  # noqa: PLC0415  # with all that a daemon needs, and no other command

    directory = paths.runtime_dir()
    # With systemd's sockets it would be us who has to answer.
    if not activation.is_activated(os.environ) and process.complete(directory):
        pid = process.lock_holder(directory)
        raise DaemonFailed(f"the daemon runs already (pid {pid})", hint="ghapp daemon stop")
    process.leave(ghapp_daemon.main([]))


@daemon.command()
def start() -> None:
    """Start the daemon and return when it listens.

    \b
    Example:
      ghapp daemon start
    """
    running = process.lock_holder(paths.runtime_dir())
    _start()
    if autostart.manager_dir(paths.runtime_dir()):
        call("status")  # at systemd's sockets somebody always listens
    say("the daemon runs already" if running else "the daemon runs")


@daemon.command()
@click.option("--keep-tokens", is_flag=True, help="Leave the tokens to GitHub, which ends them within the hour.")
def stop(*, keep_tokens: bool) -> None:
    """Stop the daemon, revoke its tokens, and return when it is gone.

    \b
    Example:
      ghapp daemon stop
    """
    say("the daemon is stopped" if stop_daemon(revoke=not keep_tokens) else "no daemon runs")


@daemon.command()
def restart() -> None:
    """Stop the daemon without revoking tokens, and start it anew.

    \b
    Example:
      ghapp daemon restart
    """
    config.load(config.config_file())  # first: one that is broken must not cost the daemon that serves
    stop_daemon(revoke=False)
    _start()
    say("the daemon runs")


@daemon.command(name="status")
@json_option
def daemon_status(*, as_json: bool) -> int:
    """Show the daemon's state; exits 1 if none runs.

    \b
    Example:
      ghapp daemon status --json
    """
    running = call_if_running("status") is not None
    if as_json and not running:
        print_json({"running": False})
        return 1
    click.get_current_context().invoke(status, as_json=as_json)
    return 0 if running else 1


@daemon.command(short_help="Let systemd start the daemon: user units.")
@click.option("--now/--no-start", "now", default=True, help="Listen now (default), or from the next login on.")
def install(*, now: bool) -> None:
    """Write and enable systemd user units: two sockets, and the service.

    Without them git starts the daemon by itself when it needs it; with them
    systemd does, limits what it may do, and keeps its log.

    \b
    Examples:
      ghapp daemon install
      ghapp daemon install --no-start
    """
    systemctl = service.manager()
    config.load(config.config_file())  # first: with one that is broken the service would fail, and fail again
    service.install(systemctl, now=now, before_start=lambda: stop_daemon(revoke=False), say=say)
    say("systemd listens for git" if now else "systemd listens for git from the next login on")
    _warn_of_inherited_network()


@daemon.command(short_help="Take the systemd units out again.")
def uninstall() -> None:
    """Disable and remove the systemd user units; git starts the daemon then.

    \b
    Example:
      ghapp daemon uninstall
    """
    say("the units are removed" if remove_units() else "no units of ours are installed")


def remove_units() -> bool:
    """Disable and remove the units, and tell whether there were any; without a user manager the files alone."""
    try:
        systemctl = service.manager()
    except DaemonFailed:
        systemctl = None
    return service.uninstall(systemctl, say=say)


def _warn_of_inherited_network() -> None:
    """Say what the daemon gets from a shell and not from systemd: proxy and CA."""
    found = config.load(config.config_file()).network
    for names, key in ((("HTTPS_PROXY", "https_proxy"), "proxy"), (("SSL_CERT_FILE",), "ca_file")):
        given = next((name for name in names if os.environ.get(name)), None)
        if given is not None and not found.get(key):
            warn(f"systemd does not know your {given}")
            hint(f"set [network] {key} in {config.config_file()}")


def _start() -> None:
    try:
        autostart.ensure(paths.control_socket())
        autostart.ensure(paths.git_socket())
    except OSError as error:
        raise started_error(error) from None


def stop_daemon(*, revoke: bool) -> bool:
    """End the daemon and wait until its process is gone; tell whether there was one."""
    directory = paths.runtime_dir()
    holder = process.lock_holder(directory)
    if holder is None and autostart.manager_dir(directory) and not process.is_locked(directory):
        return False  # asking would let systemd start one
    try:
        answer = ask("stop", patience=END_LIMIT, revoke=revoke)
    except GhappError:
        answer = None  # it does not answer: the signal remains
    if answer is not None:
        result = answer["result"]
        holder = result["pid"]
        if result["revoked"]:
            say(f"revoked {counted(result['revoked'], 'token')}")
        if result["not_revoked"]:
            alive, them = counted(result["not_revoked"], "token"), "it" if result["not_revoked"] == 1 else "them"
            say(f"{alive} could not be revoked; GitHub ends {them} within the hour")
    if holder is None:
        ending = process.is_locked(directory)  # by another's wish; it takes no more requests
        if not process.wait_for_lock(directory, END_LIMIT):
            raise DaemonFailed("the daemon does not end", hint=f"lsof {directory}/daemon.lock")
        return ending
    if answer is None and not _end(holder, signal.SIGTERM, TERM_LIMIT):
        _end(holder, signal.SIGKILL, TERM_LIMIT)
    if not process.wait_for_end(holder, END_LIMIT):
        raise DaemonFailed(f"the daemon (pid {holder}) does not end", hint=f"kill -9 {holder}")
    return True


def _end(pid: int, number: signal.Signals, limit: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return process.wait_for_end(pid, limit)
