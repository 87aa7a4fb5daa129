"""``config.toml``: read strictly, written whole and atomically, with the user's comments kept."""

import contextlib
import errno
import fcntl
import os
import re
import shlex
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import tomlkit
from tomlkit.exceptions import TOMLKitError

from ghapp.credential import normal_host
from ghapp.errors import ConfigError
from ghapp.installation import LEVELS, permissions_of
from ghapp.routing import App


GITHUB = "github.com"
MAX_CONFIG = 1024 * 1024
IDLE_TIMEOUT = 8 * 3600.0
KEY_TTL = 15 * 60.0

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?")
_API = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._/-]*)?")
_APP_KEYS = frozenset({"name", "host", "api_url", "client_id", "app_id", "keys", "owners", "scope", "permissions"})
_IDENTITY = frozenset({"host", "api_url", "client_id", "app_id", "keys"})
_SIGNERS = ("keyring:", "file:")
_DAEMON_KEYS = frozenset({"idle_timeout", "key_ttl", "probe", "on_error"})
_KEYRING_KEYS = frozenset({"backend"})
_NETWORK_KEYS = frozenset({"proxy", "no_proxy", "ca_file", "ca_directory"})


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration, checked."""

    idle_timeout: float = IDLE_TIMEOUT
    """Seconds without a request after which the daemon ends; 0 for never."""
    key_ttl: float = KEY_TTL
    """Seconds after the last mint for which the key stays in memory; 0 for as long as the daemon runs."""
    quit_on_error: bool = True
    probe: bool = True
    """Whether a new token is tried on the git server before it is handed out."""
    keyring_backend: str = ""
    """``module.Class`` of the keyring package; empty for the platform's own."""
    apps: tuple[App, ...] = ()
    network: Mapping[str, str] = field(default_factory=dict, repr=False)


def config_dir() -> Path:
    """Return the directory of ``config.toml`` and of the file that git includes."""
    return platformdirs.user_config_path("ghapp")


def state_dir() -> Path:
    """Return the directory of the logs."""
    return platformdirs.user_state_path("ghapp")


def config_file() -> Path:
    """Return the path of ``config.toml``."""
    return config_dir() / "config.toml"


def is_host(name: str) -> bool:
    """Tell whether `name`, in normal form, can be the host of a GitHub: with a dot, or this machine."""
    return bool(_HOST.fullmatch(name)) and ("." in name or name.partition(":")[0] == "localhost")


def is_api(url: str) -> bool:
    """Tell whether `url` can be the base of an API: https, a host, and a path at most."""
    return bool(_API.fullmatch(url))


def api_url(host: str) -> str:
    """Return the API's base of a host: github.com, SUBDOMAIN.ghe.com, or an Enterprise Server."""
    if host == GITHUB:
        return "https://api.github.com"
    return f"https://api.{host}" if host.endswith(".ghe.com") else f"https://{host}/api/v3"


def parse_duration(text: str) -> float:
    """Return seconds for ``90``, ``15m`` or ``1h30m``, as in ``ssh-add -t``. Raises `ValueError`."""
    if not re.fullmatch(r"[0-9]{1,9}[smhd]?|(?:[0-9]{1,9}[smhd])+", text):
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m or 8h")
    return float(sum(int(number) * _SECONDS[unit or "s"] for number, unit in re.findall(r"(\d+)([smhd]?)", text)))


def load(path: Path) -> Config:
    """Read the configuration; a missing file is an empty one. Raises `ConfigError`, which names the place."""
    try:
        data = _read(path)
        return _config(tomllib.loads(data.decode()))
    except FileNotFoundError:
        return Config()
    except (ValueError, RecursionError) as error:  # what is not TOML or not UTF-8 is a ValueError
        raise ConfigError(f"{path}: {error}", hint=f"edit {path}") from None


def _read(path: Path) -> bytes:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from None
    with file:
        status = os.fstat(file.fileno())
        if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"{path} can be written by others", hint=f"chmod go-w {shlex.quote(str(path))}")
        data = file.read(MAX_CONFIG + 1)
    if len(data) > MAX_CONFIG:
        raise ValueError(f"larger than {MAX_CONFIG} bytes")
    return data


class _Table:
    """A TOML table read by typed getters, whose errors name the place."""

    def __init__(self, place: str, entries: object, known: frozenset[str]) -> None:
        if not isinstance(entries, dict):
            raise ValueError(f"{place} must be a table")  # noqa: TRY004  # the file's value is wrong, not our types
        unknown = sorted(entries.keys() - known)
        if unknown:
            raise ValueError(f"{place} has no key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        self._place = place
        self._entries = entries

    def text(self, key: str, default: str = "", *, among: frozenset[str] | None = None) -> str:
        value = self._entries.get(key, default)
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(f"{self._place}.{key} must be a line of text")
        if among is not None and value not in among:
            raise ValueError(f"{self._place}.{key} must be one of {', '.join(sorted(among))}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._entries.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise ValueError(f"{self._place}.{key} must be a list of texts")
        return tuple(value)

    def number(self, key: str) -> int | None:
        value = self._entries.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{self._place}.{key} must be a positive number")
        return value

    def duration(self, key: str, default: float) -> float:
        value = self._entries.get(key)
        if value is None:
            return default
        if type(value) is int and value == 0:
            return 0.0
        try:
            return parse_duration(value if isinstance(value, str) else "")
        except ValueError:
            raise ValueError(f'{self._place}.{key} must be a duration such as "15m", or 0') from None

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._entries.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self._place}.{key} must be true or false")  # noqa: TRY004  # as above
        return value

    def mapping(self, key: str) -> dict[str, str] | None:
        value = self._entries.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, dict)
            or not value
            or not all(isinstance(level, str) and level in LEVELS for level in value.values())
        ):
            # An empty map would reach GitHub as "everything".
            raise ValueError(
                f"{self._place}.{key} must name at least one permission and its level: read, write or admin"
            )
        return value


def _config(entries: dict[str, Any]) -> Config:
    unknown = sorted(entries.keys() - {"app", "daemon", "keyring", "network"})
    if unknown:
        raise ValueError(f"there is no section {unknown[0]!r}; known are app, daemon, keyring and network")
    daemon = _Table("daemon", entries.get("daemon", {}), _DAEMON_KEYS)
    network = _Table("network", entries.get("network", {}), _NETWORK_KEYS)
    keyring = _Table("keyring", entries.get("keyring", {}), _KEYRING_KEYS)
    apps = entries.get("app", [])
    if not isinstance(apps, list):
        raise ValueError("app must be a list of tables: [[app]]")  # noqa: TRY004  # as above
    found = tuple(_app(f"app[{index}]", table) for index, table in enumerate(apps))
    names = [app.name for app in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"there are two apps of the name {name}")
    return Config(
        idle_timeout=daemon.duration("idle_timeout", IDLE_TIMEOUT),
        key_ttl=daemon.duration("key_ttl", KEY_TTL),
        quit_on_error=daemon.text("on_error", "quit", among=frozenset({"quit", "next"})) == "quit",
        probe=daemon.flag("probe", default=True),
        keyring_backend=keyring.text("backend"),
        apps=found,
        network={key: network.text(key) for key in _NETWORK_KEYS},
    )


def _app(place: str, entries: object) -> App:
    table = _Table(place, entries, _APP_KEYS)
    name, client_id, app_id = table.text("name"), table.text("client_id"), table.number("app_id")
    host = normal_host(table.text("host", GITHUB))
    keys, url = table.texts("keys"), table.text("api_url") or api_url(host)
    if not name:
        raise ValueError(f"{place}.name is missing")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{place}.host is not a host name")
    if not client_id and app_id is None:
        raise ValueError(f"{place} has neither client_id nor app_id")
    if not _API.fullmatch(url):
        raise ValueError(f"{place}.api_url must be https://HOST/PATH")
    if not isinstance(entries, dict) or "keys" not in entries:  # an empty list is what a last key leaves behind
        raise ValueError(f"{place}.keys is missing")
    for key in keys:
        if not key.startswith(_SIGNERS):
            raise ValueError(f"{place}.keys: {key} is of no known kind; known are {' and '.join(_SIGNERS)}")
    permissions = table.mapping("permissions")
    return App(
        name=name,
        host=host,
        api=url.rstrip("/"),
        issuer=client_id or str(app_id),
        keys=keys,
        client_id=client_id,
        app_id=app_id,
        owners=table.texts("owners"),
        whole_installation=table.text("scope", "repository", among=frozenset({"repository", "installation"}))
        == "installation",
        permissions=None if permissions is None else permissions_of(permissions),
    )


def edit(path: Path, change: Callable[[tomlkit.TOMLDocument], None]) -> None:
    """Apply `change` to the document at `path` and put the result in its place: all of it, or nothing.

    Raises `ConfigError`; a result that `load` would refuse is not written.
    """
    try:
        with _locked(path):
            _edit(path, change)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = f"{'df' if full else 'ls -ld'} {_nearest(path.parent)}"
        raise ConfigError(f"cannot write {path}: {error.strerror}", hint=hint) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let two who edit at the same moment take turns: each reads what the other wrote.

    The lock's file stays: whoever removed it would let a third one in beside the second.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks: one editor at a time is the rule
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _edit(path: Path, change: Callable[[tomlkit.TOMLDocument], None]) -> None:
    try:
        before = _read(path).decode()
    except FileNotFoundError:
        before = ""
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", hint=f"edit {path}") from None
    try:
        document = tomlkit.parse(before)
        change(document)
        after = tomlkit.dumps(document)
        _config(tomllib.loads(after))
    except (ValueError, TOMLKitError) as error:
        raise ConfigError(f"{path} would become invalid: {error}", hint=f"edit {path}") from None
    write_atomically(path, after.encode(), mode=0o600)


def _nearest(directory: Path) -> Path:
    """Return `directory` or what there is of it: a command can look at nothing else."""
    return next((place for place in (directory, *directory.parents) if os.path.lexists(place)), directory)


def write_atomically(path: Path, data: bytes, *, mode: int) -> None:
    """Put `data` at `path` so that a reader, and a crash at any moment, sees the old file or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = path.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def app_table(*, name: str, host: str, url: str, client_id: str, app_id: int | None, key: str) -> dict[str, object]:
    """Return the ``[[app]]`` table for a new app, without what is the default anyway."""
    table: dict[str, object] = {"name": name}
    if host != GITHUB:
        table["host"] = host
    if url != api_url(host):
        table["api_url"] = url
    if client_id:
        table["client_id"] = client_id
    if app_id is not None:
        table["app_id"] = app_id
    table["keys"] = [key]
    return table


def put_app(path: Path, entries: Mapping[str, object]) -> None:
    """Add an app to the file at `path`, or replace who the one of that name is; what it may do stays."""

    def change(document: tomlkit.TOMLDocument) -> None:
        apps = document.setdefault("app", tomlkit.aot())
        table = next((app for app in apps if app.get("name") == entries["name"]), None)
        if table is None:
            table = tomlkit.table()
            apps.append(table)
            table = apps[-1]
        for key in _IDENTITY - entries.keys():
            table.pop(key, None)
        table.update(entries)

    edit(path, change)


def remove_app(path: Path, name: str) -> None:
    """Take the app of that name out of the file at `path`. Raises `ConfigError` if there is none."""

    def change(document: tomlkit.TOMLDocument) -> None:
        apps = document.get("app", [])
        index = next((index for index, app in enumerate(apps) if app.get("name") == name), None)
        if index is None:
            raise ConfigError(f"there is no app {name}", hint="ghapp app list")
        del apps[index]
        if not apps:
            del document["app"]

    edit(path, change)


def add_key(path: Path, name: str, reference: str) -> None:
    """Append a signer to the keys of the app `name`. Raises `ConfigError` if there is no such app."""

    def change(document: tomlkit.TOMLDocument) -> None:
        keys = _find_app(document, name)["keys"]
        if reference not in keys:
            keys.append(reference)

    edit(path, change)


def remove_key(path: Path, name: str, reference: str, *, others: Sequence[str]) -> None:
    """Take a signer out of the keys of the app `name`, if the others still are `others`.

    Who decided that it can go knew these: another one who removed one of them meanwhile relied on this one. Raises
    `ConfigError`.
    """

    def change(document: tomlkit.TOMLDocument) -> None:
        keys = _find_app(document, name)["keys"]
        if reference not in keys or not set(others) <= set(keys):
            raise ConfigError(f"the keys of {name} were changed meanwhile", hint=f"ghapp key list --app {name}")
        keys.remove(reference)

    edit(path, change)


def _find_app(document: tomlkit.TOMLDocument, name: str) -> Any:  # tomlkit's tables are not typed
    app = next((app for app in document.get("app", []) if app.get("name") == name), None)
    if app is None:
        raise ConfigError(f"there is no app {name}", hint="ghapp app list")
    return app
