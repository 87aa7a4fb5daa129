"""What is on this machine: our configuration, our directories, the daemon, its unit."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from ghapp import audit, autostart, config, paths, service
from ghapp.cli.checks import FAIL, OK, SKIP, WARN, Check, Ground, quoted
from ghapp.cli.daemon_client import call, call_if_running
from ghapp.errors import GhappError


RESTART = "ghapp daemon restart"


def check_configuration(ground: Ground) -> Iterator[Check]:
    """Look at ``config.toml``."""
    path = config.config_file()
    try:
        ground.config = config.load(path)
    except GhappError as error:
        yield Check("config", FAIL, error.message, error.hint, safe=error.hint.startswith("chmod "))
        return
    if not ground.config.apps:
        yield Check("config", FAIL, "no app is registered", "ghapp setup")
        return
    names = ", ".join(app.name for app in ground.config.apps)
    yield Check("config", OK, f"{path}: {names}")


def check_runtime_directory(ground: Ground) -> Iterator[Check]:  # noqa: ARG001  # as every check
    """Look at the directory of the sockets."""
    directory = paths.runtime_dir()
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        yield Check("runtime-directory", OK, f"{directory} is made when the daemon starts")
        return
    except OSError as error:
        yield Check("runtime-directory", FAIL, f"{directory}: {error.strerror}", f"ls -ld {quoted(directory)}")
        return
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        why = f"{directory} is open to others (mode {mode:04o})"
        yield Check("runtime-directory", FAIL, why, f"chmod 700 {quoted(directory)}", safe=True)
        return
    try:
        autostart.make_runtime_dir(directory)
    except OSError as error:
        why, _, hint = str(error.args[-1]).partition("\n")
        if stat.S_ISREG(status.st_mode):
            hint = f"mv {quoted(directory)} {quoted(directory + '.aside')}"
        yield Check("runtime-directory", FAIL, why, hint)
        return
    yield Check("runtime-directory", OK, directory)


def check_daemon(ground: Ground) -> Iterator[Check]:
    """Look at the daemon, and start one if none runs: git would."""
    try:
        was_running = call_if_running("status") is not None
        ground.status = call("status")
    except GhappError as error:
        hint = error.hint or RESTART
        yield Check("daemon", FAIL, str(error), hint, safe=hint == RESTART)
        return
    about = f"pid {ground.status['pid']}, version {ground.status['version']}"
    installed = version("ghapp")
    if ground.status["version"] != installed:
        why = f"{about} runs, and {installed} is installed"
        yield Check("daemon", WARN, why, RESTART, safe=True)
        return
    yield Check("daemon", OK, f"{about}{'' if was_running else ', started now'}")
    problem = _problem_with_sockets()
    if problem is not None:
        yield problem
    else:
        yield Check("sockets", OK, f"{paths.git_socket()} and control.sock answer, closed to others")


def _problem_with_sockets() -> Check | None:
    for path in (paths.git_socket(), paths.control_socket()):
        try:
            status = os.lstat(path)
        except OSError as error:
            return Check("sockets", FAIL, f"{path}: {error.strerror}", RESTART, safe=True)
        if not stat.S_ISSOCK(status.st_mode) or not autostart.listens(path):
            return Check("sockets", FAIL, f"nobody listens at {path}", RESTART, safe=True)
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            return Check("sockets", WARN, f"{path} has mode {mode:04o}", f"chmod 600 {quoted(path)}", safe=True)
    return None


def check_installation(ground: Ground) -> Iterator[Check]:  # noqa: ARG001  # as every check
    """Look at where ghapp itself lies."""
    if autostart.is_throw_away(os.path.realpath(os.sys.prefix)):  # type: ignore[attr-defined]
        yield Check("install", FAIL, "ghapp runs from a cache that may be emptied any day", "uv tool install ghapp")
        return
    yield Check("install", OK, f"ghapp {version('ghapp')} in {Path(autostart.__file__).parent}")


def check_service(ground: Ground) -> Iterator[Check]:  # noqa: ARG001  # as every check
    """Look at systemd's units, where there are any of ours."""
    units = service.installed()
    if not units:
        yield Check("service", SKIP, "no units are installed; git starts the daemon by itself")
        return
    missing = sorted(set(service.UNITS) - {path.name for path in units})
    if missing:
        yield Check("service", FAIL, f"{', '.join(missing)} is missing", "ghapp daemon install")
        return
    try:
        stale = [path for path in units if path.read_text() != service.render(path.name, service.command())]
    except (GhappError, OSError) as error:
        yield Check("service", WARN, str(error), "ghapp daemon uninstall")
        return
    if stale:
        yield Check("service", WARN, f"{stale[0]} is of another installation or version", "ghapp daemon install")
        return
    yield Check("service", OK, f"systemd listens, by the units in {units[0].parent}")


def check_state(ground: Ground) -> Iterator[Check]:  # noqa: ARG001  # as every check
    """Look at the directory of the logs."""
    directory = config.state_dir()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        aside = f"mv {quoted(existing)} {quoted(f'{existing}.aside')}"
        yield Check("state", WARN, f"{existing} is not a directory: nothing is logged", aside)
    elif not os.access(existing, os.W_OK):
        yield Check("state", WARN, f"{existing} cannot be written: nothing is logged", f"ls -ld {quoted(existing)}")
    elif (trail := audit.file_of(directory, None)).is_dir():
        aside = f"mv {quoted(trail)} {quoted(f'{trail}.aside')}"
        yield Check("state", WARN, f"{trail} is a directory: nothing is recorded there", aside)
    elif os.statvfs(existing).f_bavail == 0:
        yield Check("state", WARN, f"the disk of {existing} is full: nothing is logged", f"df -h {quoted(existing)}")
    else:
        yield Check("state", OK, str(directory))


def check_proxy(ground: Ground) -> Iterator[Check]:
    """Say whether GitHub is reached, by which proxy and CA, where these come from, and whether this shell has them."""
    network = (ground.status or {}).get("network")
    if network is None and ground.status is not None:  # a daemon that has just started had not imported it yet
        with contextlib.suppress(GhappError):
            network = call("status").get("network")
    differs = "" if network is None else _differs(ground.env, network)
    for error in {str(error): error for error in ground.unreached.values()}.values():
        why = f"{error}; {differs}" if differs else str(error)
        yield Check("network", FAIL, why, RESTART if differs else error.hint, safe=bool(differs))
    if network is None and not ground.unreached:
        yield Check("network", SKIP, "no daemon to ask")
    if network is None or ground.unreached:
        return
    proxy = f"proxy {network['proxy']} ({network['proxy_origin']})" if network["proxy"] else "no proxy"
    ca = f"CA {network['ca']} ({network['ca_origin']})" if network["ca"] else "the system's CAs"
    if differs:
        yield Check("network", WARN, f"{proxy}, {ca}; {differs}", RESTART, safe=True)
    else:
        yield Check("network", OK, f"{proxy}, {ca}")


def _differs(env: Mapping[str, str], network: Mapping[str, str]) -> str:
    """Say in what this shell's environment is another than the one that the daemon was started in, or ""."""
    inherited = {name: env.get(name, "") for name in ("HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE")}
    for name, value in inherited.items():
        what = "ca" if name == "SSL_CERT_FILE" else "proxy"
        here = value if what == "ca" else urlsplit(value if "://" in value else f"http://{value}").netloc
        if network[f"{what}_origin"] == name and not value:
            return f"{name} is set where the daemon was started, unlike here"
        if network[f"{what}_origin"] == name and here.rpartition("@")[2] != network[what]:
            return f"{name} is another where the daemon was started"
        if value and not network[what]:
            return f"{name} is not set where the daemon was started, unlike here"
    return ""
