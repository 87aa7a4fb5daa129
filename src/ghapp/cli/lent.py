"""How git is told to use a socket that was lent to it: settings, and their forms for those who start it."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence

from ghapp.credential import USERNAME


INSIDE = "/run/ghapp"  # where a container sees the grant's directory
Settings = list[tuple[str, str]]


def helper(socket: str) -> str:
    """Return the helper that asks `socket`, by git's own client alone.

    It never calls `store`: git's client would start a daemon of its own where nobody listens any more, and the
    directory is read-only there.
    """
    return f"!f() {{ [ $1 = store ] || exec git credential-cache --timeout=0 --socket={shlex.quote(socket)} $1; }}; f"


def settings(urls: Iterable[str], socket: str) -> Settings:
    """Return git's settings by which `socket`, and nobody else, answers for `urls`; for the end of a configuration."""
    found: Settings = []
    for url in urls:
        found += [
            (f"credential.{url}.helper", ""),
            (f"credential.{url}.helper", helper(socket)),
            (f"credential.{url}.useHttpPath", "true"),
            (f"credential.{url}.username", USERNAME),
        ]
    return found


def counted_variables(found: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that add the settings at the end of git's configuration (git ≥ 2.31)."""
    given = environment.get("GIT_CONFIG_COUNT", "")
    first = int(given) if given.isdecimal() else 0
    counted = {"GIT_CONFIG_COUNT": str(first + len(found))}
    for number, (key, value) in enumerate(found, first):
        counted |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return counted


def listed_variable(found: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable by which ``git -c`` hands its settings on, in the form that every git reads.

    It is the last of all that git reads, also where the counted ones are known: both say the same.
    """
    given = environment.get("GIT_CONFIG_PARAMETERS", "")
    quoted = ["'" + f"{key}={value}".replace("'", "'\\''").replace("!", "'\\!'") + "'" for key, value in found]
    return {"GIT_CONFIG_PARAMETERS": " ".join([given, *quoted] if given else quoted)}


def variables(found: Settings) -> dict[str, str]:
    """Return the variables for any git; where both forms are read, they say the same."""
    return counted_variables(found, {}) | listed_variable(found, {})


def shell(words: Sequence[str]) -> str:
    """Return `words` as one line for a shell."""
    return " ".join(shlex.quote(word) for word in words)


def for_container(found: Settings, directory: str) -> list[str]:
    """Return the arguments for docker's and podman's `run`: the grant's directory, read-only, and git's settings."""
    # --mount, unlike --volume, fails where the directory is gone, instead of making one.
    words = ["--mount", f"type=bind,{_field(f'source={directory}')},target={INSIDE},readonly"]
    for name, value in variables(found).items():
        words += ["--env", f"{name}={value}"]
    return words


def _field(text: str) -> str:
    """Return `text` as a field of what --mount takes, which is CSV."""
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def for_dev_container(found: Settings, directory: str) -> str:
    """Return what belongs into a devcontainer.json."""
    mount = f"{_field(f'source={directory}')},target={INSIDE},type=bind,readonly"
    return json.dumps({"mounts": [mount], "containerEnv": variables(found)}, indent=2)


def for_shell(found: Settings) -> list[str]:
    """Return the lines that a shell reads."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables(found).items()]


def for_file(found: Settings) -> str:
    """Return the settings, which are all of one URL, as a section of a git configuration."""
    lines = [f'[credential "{found[0][0].partition(".")[2].rpartition(".")[0]}"]']
    for key, value in found:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'\t{key.rpartition(".")[2]} = "{escaped}"')
    return "\n".join(lines)


def for_remote(found: Settings) -> list[str]:
    """Return the commands that add the settings to the user's configuration on another machine."""
    return [shell(["git", "config", "--global", "--add", key, value]) for key, value in found]
