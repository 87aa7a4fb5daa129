"""What git does: its version, whom it asks for each owner, who would get our token, and what it does without asking."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ghapp import helper_chain
from ghapp.cli.checks import FAIL, NOT_REACHED, OK, SKIP, WARN, Check, Ground, netrc, quoted
from ghapp.cli.daemon_client import call
from ghapp.config import config_dir
from ghapp.errors import GhappError
from ghapp.helper_chain import Entry, GitConfig


OLDEST = (2, 30)
LACKS = (
    ((2, 46), "a token that GitHub rejects is replaced in the next command, not in the same one"),
    ((2, 41), "it does not know when a token ends"),
    ((2, 36), "setup-git --identity cannot work"),
)
LS_REMOTE_SECONDS = 60
SETUP = "ghapp setup-git"
# Whose mere presence makes cargo use a transport of its own.
CARGO_TRANSPORT = frozenset({"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "HTTP_TIMEOUT"})
# In curl's words, whatever they are; a status is GitHub's own answer.
_OF_THE_NETWORK = re.compile(r"unable to access 'https?://[^']*': (?!The requested URL returned error)")


def check_version(ground: Ground) -> Iterator[Check]:
    """Look at git itself."""
    try:
        done = subprocess.run(
            ("git", "--version"),  # noqa: S607  # the user's git, wherever it is
            env={**ground.env, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},  # which may be broken
            cwd="/",
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check("git", FAIL, f"git cannot be run: {error}", "install git: apt install git, or brew install git")
        return
    number = re.search(r"(\d+)\.(\d+)", done.stdout)
    if number is None:
        yield Check("git", WARN, f"git does not tell its version: {done.stdout.strip()!r}", "git --version")
        return
    known, text = (int(number[1]), int(number[2])), done.stdout.strip().removeprefix("git version ")
    if known < OLDEST:
        yield Check("git", FAIL, f"git {text} is older than 2.30", "upgrade git")
        return
    lacking = [what for since, what in LACKS if known < since]
    yield Check("git", OK, f"git {text}" + (f"; {lacking[0]}" if lacking else ""))


def check_helpers(ground: Ground) -> Iterator[Check]:
    """Replay git's configuration for each owner."""
    try:
        config = helper_chain.read(ground.env, ground.cwd)
    except GhappError as error:
        # Our own file is written anew; any other is a person's to edit.
        ours = f" in file {config_dir() / 'gitconfig'}" in error.message
        yield Check("git-config", FAIL, error.message, SETUP if ours else error.hint, safe=ours)
        return
    yield Check("git-config", OK, f"{len(config.entries)} entries")
    if not ground.owners:
        yield Check("helpers", SKIP, NOT_REACHED if ground.is_cut_off else "no installation is known")
        return
    left_out = _left_out(config)
    for host, owner in ground.owners:
        if host in left_out:
            yield Check(f"helpers {owner}", SKIP, f"setup-git --host left {host} out")
            continue
        yield _check_chain(f"https://{host}/{owner}/x.git", owner, config)
        below = f"https://{host}/{owner}/"
        for url in config.sections_below(below):  # a section of one repository, which the owner's name does not show
            yield _check_chain(url, f"{owner}/{url[len(below) :]}", config)
        yield from _check_detours(f"https://{host}/{owner}/x.git", owner, config)
    yield from _check_remotes(ground, config)


def _left_out(config: GitConfig) -> set[str]:
    """Return the hosts that a person chose to leave to others."""
    return {entry.value for entry in config.entries if entry.key == "ghapp.setup-git.leaveout"}


def _check_chain(url: str, owner: str, config: GitConfig) -> Check:
    name = f"helpers {owner}"
    helpers = config.helpers(url)
    ours = next((number for number, helper in enumerate(helpers) if helper.is_ours), None)
    if ours is None:
        asked = ", ".join(helper.name for helper in helpers) or "nobody"
        hint = _mend(config.helper_entries(url))
        return Check(name, FAIL, f"git asks {asked} for {owner}, not ghapp", hint, safe=hint == SETUP)
    program = helpers[ours].program
    if program and not os.access(program, os.X_OK):
        return Check(name, FAIL, f"{program}, which git would run, is not there", SETUP, safe=True)
    before, behind = helpers[:ours], [helper for helper in helpers[ours + 1 :] if not helper.is_ours]
    if before:
        names = ", ".join(helper.name for helper in before)
        hint = _mend([helper.entry for helper in before])
        return Check(name, FAIL, f"{names} answers for {owner} before ghapp", hint, safe=hint == SETUP)
    if behind:
        names = ", ".join(helper.name for helper in behind)
        why = f"{names} is asked for {owner} after ghapp, and gets its tokens to store"
        hint = _mend([helper.entry for helper in behind])
        return Check(name, FAIL, why, hint, safe=hint == SETUP)
    path = config.last("credential", "usehttppath", url)
    if path is None or path.value.lower() in {"false", "no", "off", "0"}:
        return Check(name, FAIL, f"git does not tell which repository of {owner} it wants", SETUP, safe=True)
    user = config.last("credential", "username", url)
    if user is not None and user.value.lower() not in {"", "x-access-token", "git"}:
        return Check(name, FAIL, f"credential.username {user.value} asks for another account", _take_out(user))
    return Check(name, OK, f"git asks ghapp alone for {owner}")


def _mend(entries: list[Entry]) -> str:
    """Return the command after which ghapp is asked alone: what stands in a repository comes after all of ours."""
    nearer = [entry for entry in entries if entry.scope in {"local", "worktree", "command"}]
    return _take_out(nearer[0]) if nearer else SETUP


def _take_out(entry: Entry, *, with_value: bool = False) -> str:
    """Return the command that takes `entry` out of the file it stands in; `with_value` leaves its other values."""
    if entry.scope == "command":
        return "unset GIT_CONFIG_COUNT GIT_CONFIG_PARAMETERS"
    only = f" --fixed-value {quoted(entry.key)} {quoted(entry.value)}" if with_value else f" {quoted(entry.key)}"
    return f"git config {_where(entry)} --unset-all{only}"


def _where(entry: Entry) -> str:
    # An absolute path may be that of an included file, or of the second of git's two global ones.
    return f"--file {quoted(entry.file)}" if entry.file.startswith("/") else f"--{entry.scope}"


def _check_detours(url: str, owner: str, config: GitConfig) -> Iterator[Check]:
    """Look for what makes git not ask any helper at all."""
    given = urlsplit(url)
    for name, push in (("insteadOf", False), ("pushInsteadOf", True)):
        target, entry = config.rewritten(url, push=push)
        parts = urlsplit(target)
        same = (parts.scheme, parts.netloc.lower()) == (given.scheme, given.netloc)
        if entry is None or same:
            continue
        has_credential = parts.scheme == "https" and "@" in parts.netloc
        to = "a URL with a credential in it" if has_credential else entry.subsection
        # With https the key itself holds a credential, which must not be shown.
        hint = f"git config {_where(entry)} --edit" if has_credential else _take_out(entry, with_value=True)
        yield Check(f"url {owner}", FAIL, f"url.*.{name} turns {owner}'s URLs into {to}", hint)
    headers = config.headers(url)
    if headers:
        why = f"{headers[0].key} sends a credential of its own for {owner}"
        hint = _take_out(headers[0])  # of this key alone what is a credential; its value must not be shown
        only = "" if headers[0].scope == "command" else " '^[Aa][Uu][Tt][Hh]'"
        yield Check(f"header {owner}", FAIL, why, hint + only)


def _check_remotes(ground: Ground, config: GitConfig) -> Iterator[Check]:
    """Look at the remotes of the repository here."""
    ours = {(host, owner.lower()) for host, owner in ground.owners}
    for entry in config.entries:
        if entry.section != "remote" or entry.name not in {"url", "pushurl"}:
            continue
        is_push, remote = entry.name == "pushurl", entry.subsection
        https = entry.value.startswith("https://")  # what is made of those is told for the owner
        url = entry.value if https else config.rewritten(entry.value)[0]
        by_ssh = "://" not in url.removeprefix("ssh://")
        scp = re.fullmatch(r"(?:ssh://)?(?:[^@:/]+@)?([^@:/]+)[:/](?:\d+/)?(.+)", url) if by_ssh else None
        parts = urlsplit(url)
        host, path = (scp[1].lower(), scp[2]) if scp else (parts.hostname or "", parts.path.lstrip("/"))
        host = host.removeprefix("ssh.")  # GitHub's ssh on port 443
        if (host, path.partition("/")[0].lower()) not in ours:
            continue  # an owner that no app is installed on: it goes on as it does
        hint = f"git remote set-url {'--push ' if is_push else ''}{quoted(remote)} {quoted(f'https://{host}/{path}')}"
        name = f"remote {remote}{' (push)' if is_push else ''}"
        if scp:
            yield Check(name, WARN, f"{entry.value} goes by ssh, past ghapp", hint)
        elif parts.scheme != "https":
            why = f"{parts.scheme}://{host}/{path} goes past ghapp, which answers for https alone"
            yield Check(name, WARN, why, hint)
        elif parts.password:
            yield Check(name, FAIL, "its URL holds a password, which git uses instead of ghapp", hint)
        elif (parts.username or "").lower() not in {"", "x-access-token", "git"}:
            yield Check(name, FAIL, "its URL holds a username, so git asks for another account", hint)


def check_other_ways(ground: Ground) -> Iterator[Check]:
    """Look at what hands git a credential without a helper: netrc, and programs that ask."""
    yield from netrc.check(ground)
    asking = [name for name in ("GIT_ASKPASS", "SSH_ASKPASS") if ground.env.get(name)]
    if asking:
        yield Check("askpass", OK, f"{', '.join(asking)} is set; git runs it only where ghapp has nothing to say")


def check_cargo(ground: Ground) -> Iterator[Check]:
    """Look at what cargo's own git, libgit2, can see."""
    if shutil.which("cargo", path=ground.env.get("PATH")) is None:
        return
    try:
        config = helper_chain.read(ground.env, ground.cwd)
    except GhappError:
        return
    by_cli = ground.env.get("CARGO_NET_GIT_FETCH_WITH_CLI", "").lower() == "true" or _cargo_uses_git(ground)
    hosts = ground.hosts - _left_out(config)
    whole = all(any(helper.is_ours for helper in config.helpers(f"https://{host}/")) for host in hosts)
    if by_cli:
        yield Check("cargo", OK, "fetches with git itself")
    elif reason := _cargo_cannot_log_in(ground, config):
        yield Check("cargo", WARN, f"with {reason} its libgit2 logs in nowhere", _let_cargo_use_git(ground))
    elif whole:
        yield Check("cargo", OK, "its libgit2 finds ghapp in the host's section")
    else:
        why = "its libgit2 reads no sections of owners, so it does not find ghapp"
        yield Check("cargo", WARN, why, f"{SETUP} --all")


def _cargo_uses_git(ground: Ground) -> bool:
    return re.search(r"^\s*(net\.)?git-fetch-with-cli\s*=\s*true", _cargo_config(ground)[1], re.MULTILINE) is not None


def _cargo_cannot_log_in(ground: Ground, config: GitConfig) -> str | None:
    """Return what makes cargo give libgit2 a transport of its own, which knows no credentials."""
    named = sorted(name for name in ground.env if name in CARGO_TRANSPORT or name.startswith("CARGO_HTTP_"))
    path, text = _cargo_config(ground)
    if named:
        return named[0]
    if any(entry.key == "http.proxy" for entry in config.entries):
        return "git's http.proxy"
    return f"[http] in {path}" if re.search(r"^\s*(\[http[].]|http\.)", text, re.MULTILINE) else None


def _let_cargo_use_git(ground: Ground) -> str:
    path, text = _cargo_config(ground)
    if re.search(r"^\s*(\[net\]|net\.)", text, re.MULTILINE):  # a second table of that name would be an error
        return f"write below [net] in {path}: git-fetch-with-cli = true"
    line = r"printf '\n[net]\ngit-fetch-with-cli = true\n'"
    return f"mkdir -p {quoted(path.parent)} && {line} >>{quoted(path)}"


def _cargo_config(ground: Ground) -> tuple[Path, str]:
    """Return cargo's own configuration, and where it is or would be."""
    home = Path(ground.env.get("CARGO_HOME") or Path(ground.env.get("HOME", "/")) / ".cargo")
    for name in ("config", "config.toml"):  # in cargo's order: with both it reads the first alone
        try:
            return home / name, (home / name).read_text(errors="replace")
        except OSError:
            continue
    return home / "config.toml", ""


def check_repository(ground: Ground) -> Iterator[Check]:
    """Let git itself list a repository."""
    if ground.repository is None:
        yield Check("repository", SKIP, "name one to try it: ghapp doctor OWNER/REPO")
        return
    host, name = ground.repository
    if host in ground.unreached:
        yield Check(f"repository {name}", SKIP, NOT_REACHED)
        return
    before = _answers()
    try:
        done = subprocess.run(  # noqa: S603  # git, and a URL of checked parts
            ("git", "ls-remote", "--heads", f"https://{host}/{name}"),  # noqa: S607  # as above
            env={**ground.env, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},  # what git says is read
            cwd=ground.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LS_REMOTE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = (
            f"did not end within {LS_REMOTE_SECONDS} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        )
        yield Check(f"repository {name}", FAIL, f"git ls-remote {why}", "ghapp daemon restart")
        return
    if done.returncode != 0:
        said = os.fsdecode(done.stderr).splitlines() or [f"exit {done.returncode}"]
        why, hint = _why_not(ground, said, was_asked=_answers() != before)
        yield Check(f"repository {name}", FAIL, f"git ls-remote: {why}", hint, safe=hint == SETUP)
    elif _answers() == before:
        yield _check_unasked(ground)
    else:
        number = len(done.stdout.splitlines())
        yield Check(f"repository {name}", OK, f"git ls-remote lists {number} {'branch' if number == 1 else 'branches'}")


def _check_unasked(ground: Ground) -> Check:
    """Judge that git could list the repository without us: nobody is asked about what is public."""
    host, name = ground.repository or ("", "")
    owner, check = name.partition("/")[0], f"repository {name}"
    if (host, owner.lower()) not in {(host, owner.lower()) for host, owner in ground.owners}:
        return Check(check, OK, f"git reads it without ghapp: no app of yours is installed on {owner}")
    try:
        config = helper_chain.read(ground.env, ground.cwd)
    except GhappError:
        config = GitConfig(())  # said already, by the check of it
    url = f"https://{host}/{name}.git"
    looked = (_check_chain(url, owner, config), *_check_detours(url, owner, config), *netrc.check(ground))
    other = next((found for found in looked if found.status in {WARN, FAIL}), None)
    if other is None:
        return Check(check, OK, "git reads it without a credential: it is public, so ghapp is asked for pushes alone")
    return Check(check, WARN, f"git reads it without asking ghapp: {other.message}", other.hint, safe=other.safe)


def _why_not(ground: Ground, said: list[str], *, was_asked: bool) -> tuple[str, str]:
    """Return what kept git from listing the repository, and what mends that."""
    host, name = ground.repository or ("", "")
    owner = name.partition("/")[0]
    errors = [line.removeprefix("ghapp: error: ") for line in said if line.startswith("ghapp: error: ")]
    hints = [line.removeprefix("ghapp: hint: ") for line in said if line.startswith("ghapp: hint: ")]
    if errors and hints:
        return errors[0], hints[0]
    why = next((line for line in (*errors, *said) if line.startswith("fatal: ")), (*errors, *said)[0])
    url = f"https://{host}/{name}.git"
    try:
        config = helper_chain.read(ground.env, ground.cwd)
    except GhappError:
        config = GitConfig(())  # said already, by the check of it
    if _OF_THE_NETWORK.search(why):
        return why, _mend_network(config, url, ground)
    page = ground.pages.get((host, owner.lower()))
    if page is None:
        try:
            call("token", host=host, repositories=[name], read_only=True)
        except GhappError as error:
            return str(error), error.hint or "ghapp status"
    checks = [_check_chain(url, owner, config), *_check_detours(url, owner, config)]
    hint = next((check.hint for check in checks if check.status == FAIL and check.hint != SETUP), SETUP)
    if was_asked and page is not None and hint == SETUP:
        return why, f"select the repository at {page}"
    return f"git got no credential of ghapp's: {why}" if "could not read" in why else why, hint


def _mend_network(config: GitConfig, url: str, ground: Ground) -> str:
    """Return what mends that git itself does not get through, though the daemon does."""
    proxy = config.last("http", "proxy", url)
    if proxy is not None and proxy.value:
        return _take_out(proxy)
    names = [name for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if ground.env.get(name)]
    return f"mend {names[0]} in this shell" if names else f"curl -I {quoted(url)}"


def _answers() -> tuple[int, int] | None:
    try:
        status = call("status")
    except GhappError:
        return None
    return status["mints"], status["hits"]
