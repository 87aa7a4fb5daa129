"""``ghapp exec``."""

import _socket
import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ghapp import autostart, config, paths
from ghapp.cli import lent
from ghapp.cli.daemon_client import ATTEMPTS, hold, started_error
from ghapp.cli.grant import refuse_contradiction
from ghapp.cli.host import check_host, require_app
from ghapp.cli.output import counted, hint, say, say_error, warn
from ghapp.cli.token import not_a_repository, parse_permissions, repository_of_origin
from ghapp.credential import parse_repository
from ghapp.errors import DaemonFailed, GhappError, GitConfigFailed
from ghapp.grant import MAX_FORMER


OURS, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127  # as env(1) and timeout(1)
OF_SIGNAL = 128
SOCKET = "GHAPP_GRANT_SOCKET"  # for who starts a sandbox: what to show it
LAST_WORD = 8.0  # seconds for the daemon to end the tokens; it gives itself 5
COMES_BACK = 10.0  # seconds for a daemon that is being restarted
LOOK_AGAIN = 0.1  # seconds
PASSED_ON = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})


class Command(click.Command):
    """A command whose own failures are told from those of what it runs, wrong usage included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take what stands behind ``--`` as it is: options there are another program's."""
        before, separator, command = args, "", []
        if "--" in args:
            at = args.index("--")
            before, separator, command = args[:at], "--", args[at + 1 :]
        ctx.obj = command
        try:
            rest = super().parse_args(ctx, list(before))
            if not ctx.resilient_parsing and not command:
                ctx.fail("there is no command" if separator else "the command stands behind --")
        except click.UsageError as error:
            message = error.format_message().rstrip(".")
            say_error(message[:1].lower() + message[1:])
            hint("ghapp exec --help" if command else "ghapp exec OWNER/REPO -- CMD")
            ctx.exit(OURS)
        return rest


class Session:
    """A grant for as long as this process lives: the daemon ends it when our connection is closed, by whatever."""

    def __init__(self, **params: Any) -> None:
        """Begin; raises `GhappError`."""
        self._params = params
        self.lent, self._connection = self._begin()
        self._params["name"] = self.lent["name"]
        self._params["former"] = [self.lent["token"]]  # the next daemon does not know it, and is to end it all the same
        self._ending = False
        self._last_word = b""
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def watch(self) -> None:
        """Begin to notice a daemon that is restarted."""
        self._watcher.start()

    def end(self) -> tuple[int, int]:
        """Let go; return how many tokens are dead and how many are not."""
        self._ending = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(_socket.SHUT_WR)
        if self._watcher.ident is None:
            self._watch()
        else:
            self._watcher.join(LAST_WORD)
        self._connection.close()
        with contextlib.suppress(ValueError):
            dead, alive = json.loads(self._last_word)
            return dead, alive
        return 0, 1  # the one for other tools, at least

    def _begin(self) -> tuple[dict[str, Any], _socket.socket]:
        for _ in range(ATTEMPTS):
            try:
                autostart.ensure(paths.control_socket())
            except OSError as error:
                raise started_error(error) from None
            if held := hold("exec", **self._params):
                return held[0]["result"], held[1]
        raise DaemonFailed("the daemon went away", hint="ghapp daemon status")

    def _watch(self) -> None:
        """Read the last word; where the connection ends without our doing, go on with the daemon that follows."""
        self._connection.settimeout(LAST_WORD if self._ending else None)
        while True:
            try:
                chunk = self._connection.recv(4096)
            except OSError:
                chunk = b""
            self._last_word += chunk
            if chunk or (not self._ending and self._begins_anew()):
                continue
            return

    def _begins_anew(self) -> bool:
        """Tell whether another daemon lends the same again; none is started: whoever stopped it meant it."""
        pause, left = threading.Event(), COMES_BACK
        while left > 0 and not self._ending:
            with contextlib.suppress(GhappError):
                if held := hold("exec", **self._params):
                    self._params["former"] = [*self._params["former"], held[0]["result"]["token"]][-MAX_FORMER:]
                    self._connection.close()
                    self._connection = held[1]
                    self._connection.settimeout(None)
                    if self._ending:  # said meanwhile, to the one before
                        self._connection.shutdown(_socket.SHUT_WR)
                    return True
            pause.wait(LOOK_AGAIN)
            left -= LOOK_AGAIN
        if not self._ending:
            warn("the daemon has ended; git has no credentials here any more")
        return False


@click.command(cls=Command, name="exec", options_metavar="[OPTIONS]")
@click.argument("repositories", nargs=-1, metavar="[OWNER/REPO]... -- CMD...")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    callback=parse_permissions,
    metavar="K=V",
    help="Only this, such as contents=write; may be repeated.",
)
@click.option("--read-only", is_flag=True, help="Read, where the installation grants write.")
@click.option("--host", callback=check_host, metavar="HOST", help="Where the repositories are; github.com.")
@click.pass_obj
def execute(
    command: list[str],
    *,
    repositories: tuple[str, ...],
    permissions: dict[str, str],
    read_only: bool,
    host: str | None,
) -> int:
    """Run a command with access that ends when it does.

    CMD's git gets credentials for the named repositories' owner from nobody
    else (without a name: of the remote "origin"), and GH_TOKEN and GITHUB_TOKEN
    are set for other tools. The tokens can do all that the installation grants
    on the named repositories, or less, and end with CMD, however that ends.
    GHAPP_GRANT_SOCKET names the socket, for a CMD that starts a sandbox.

    \b
    Exit status: that of CMD, 128 and more for a signal; 125 when ghapp itself
    fails, 126 when CMD cannot be run, 127 when there is none.

    \b
    Limits:
      It is no sandbox: CMD runs as you, and can do what you can do.
      GH_TOKEN is valid for an hour; git goes on for longer.
      Programs that use libgit2, such as cargo's own fetch, do not read these
      settings: set net.git-fetch-with-cli there.
      sudo and su drop the environment, so what they start has nothing.
      What CMD leaves running has no access any more once CMD has ended.

    \b
    Examples:
      ghapp exec acme/rocket -- git push
      ghapp exec acme/rocket --read-only -- gh pr list --repo acme/rocket
    """
    try:
        refuse_contradiction(permissions, read_only=read_only)
        return _run(command, list(repositories), permissions, host, read_only=read_only)
    except (GhappError, click.ClickException) as error:
        say_error(str(error) if isinstance(error, GhappError) else error.format_message())
        hint(getattr(error, "hint", "") or "")
    except OSError as error:
        say_error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    return OURS


def _run(
    command: Sequence[str], names: list[str], permissions: dict[str, str], host: str | None, *, read_only: bool
) -> int:
    if not names:
        origin, name = repository_of_origin("ghapp exec OWNER/REPO -- CMD")
        host, names = host or origin, [name]
    host = host or config.GITHUB
    for name in names:
        if parse_repository(name) is None:
            raise click.UsageError(not_a_repository(name))
    require_app(host)
    session = Session(repositories=names, host=host, permissions=permissions or None, read_only=read_only)
    try:
        owners = dict.fromkeys([session.lent["owner"], *(name.partition("/")[0] for name in names)])
        spellings = dict.fromkeys([*owners, *(owner.lower() for owner in owners)])
        found = lent.settings([f"https://{host}/{owner}" for owner in spellings], session.lent["socket"])
        environment = dict(os.environ) | lent.counted_variables(found, os.environ)
        environment |= lent.listed_variable(found, os.environ) | tokens(host, session.lent["token"])
        environment[SOCKET] = session.lent["socket"]
        check_last(found, environment)
        # Before there is a second thread, which takes this over; whoever comes early is not lost.
        with contextlib.suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some who start us leave it, it never comes
        signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
        session.watch()
        return spawn(command, environment)
    finally:
        _, alive = session.end()
        if alive:
            say(f"{counted(alive, 'token')} could not be revoked; GitHub ends what is left within the hour")


def tokens(host: str, token: str) -> dict[str, str]:
    """Return the variables that other tools read a token from."""
    if host == config.GITHUB or host.endswith(".ghe.com"):
        names = ("GH_TOKEN", "GITHUB_TOKEN")
    else:
        names = ("GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN")
    found = dict.fromkeys(names, token)
    return found if host == config.GITHUB else found | {"GH_HOST": host}


def check_last(found: lent.Settings, environment: Mapping[str, str]) -> None:
    """Let the child's own git say which helper it would ask last. Raises `GitConfigFailed` if that is not ours.

    Where there is no git for the child, none can ask anybody.
    """
    command = ("git", "config", "--null", "--get-regexp", r"^credential\..*helper$")
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # a fixed command
    except (FileNotFoundError, PermissionError):
        return
    last = done.stdout.rstrip("\0").split("\0")[-1].partition("\n")
    key, value = next((key, value) for key, value in reversed(found) if key.endswith(".helper"))
    if done.returncode != 0 or (last[0].lower(), last[2]) != (key.lower(), value):
        why = done.stderr.strip().splitlines()[-1:] or [f"{last[0] or 'nothing'} comes last"]
        raise GitConfigFailed(
            f"git here does not take our settings: {why[0]}", hint="unset GIT_CONFIG_COUNT GIT_CONFIG_PARAMETERS"
        )


def spawn(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `command`, pass the signals on that were blocked, and return its status as a shell tells it."""
    try:
        pid = os.posix_spawnp(
            command[0],
            list(command),
            environment,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them
        )
    except FileNotFoundError:
        say_error(f"{command[0]}: not found")
        return NOT_FOUND
    except OSError as error:
        say_error(f"{command[0]}: {error.strerror}")
        return NOT_EXECUTABLE
    while True:
        number, from_terminal = _next_signal()
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else OF_SIGNAL - code
        elif not from_terminal:  # what is typed there reaches the command by itself
            os.kill(pid, number)


def _next_signal() -> tuple[int, bool]:
    """Return the next signal, and whether the terminal sent it to all in front of it.

    Not so when it hangs up: only the leader of its session is told. To be told twice, by a shell too, does no harm.
    """
    waited_for = {*PASSED_ON, signal.SIGCHLD}
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(waited_for)
        return info.si_signo, info.si_code > 0 and info.si_signo != signal.SIGHUP
    number = signal.sigwait(waited_for)  # macOS does not say
    return number, number in {signal.SIGINT, signal.SIGQUIT}
