"""The command line: what people and programs see."""

import ast
import asyncio
import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete
from conftest import ROOT
from fakes_keyring import Keyring
from fakes_process import (
    DEAF,
    WITH_PID,
    eventually,
    greet,
    hang_up,
    holding_lock,
    listener,
    listener_of_another_user,
    running,
    saying,
)
from standin.model import App
from standin.server import StandIn

from ghapp import autostart, cli, config, gitconfig, paths, process
from ghapp.cli import daemon as daemon_commands
from ghapp.cli import daemon_client, key_import, output
from ghapp.cli import token as token_command


PERMISSIONS = {"contents": "write", "issues": "write"}


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Ghapp:
    """`ghapp` in this process; `asked` in a thread, for while a daemon runs in the test's loop."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        self._capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *self._capsys.readouterr())

    async def asked(self, *arguments: str | Path) -> Result:
        return await asyncio.to_thread(self, *arguments)


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch) -> App:
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    return app


@pytest.fixture
async def served(directory: Path) -> AsyncIterator[Path]:
    async with running(directory):
        yield directory


@pytest.fixture
def key(app: App, tmp_path: Path) -> Path:
    path = tmp_path / "downloaded.pem"
    path.touch(mode=0o600)
    path.write_bytes(app.private_key_pem)
    return path


def break_config() -> Path:
    path = config.config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[deamon]\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def broken() -> Path:
    return break_config()


def files(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


async def add(ghapp: Ghapp, app: App, key: Path) -> Result:
    return await ghapp.asked("app", "add", "--app-id", str(app.id), "--signer", f"file:{key}")


def commands() -> list[list[str]]:
    found: list[list[str]] = [[]]

    def walk(group: click.Group, prefix: list[str]) -> None:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            found.append([*prefix, name])
            if isinstance(command, click.Group):
                walk(command, [*prefix, name])

    walk(cli.cli, [])
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_help_fits_a_terminal_and_shows_an_example(
    ghapp: Ghapp, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    done = ghapp(*command, "--help")

    assert done.code == 0
    assert max(len(line) for line in done.out.splitlines()) <= 80
    assert "Example" in done.out or "Begin with" in done.out
    assert "\\b" not in done.out
    lines = done.out.splitlines()
    shown = next(
        number for number, line in enumerate(lines) if line.strip() in {"Example:", "Examples:", "Begin with:"}
    )
    assert re.match(r"    (GH_TOKEN=\$\(|eval \"\$\()?ghapp ", lines[shown + 1])


@pytest.mark.parametrize("command", [[], ["app"], ["daemon"]], ids=" ".join)
def test_a_group_alone_prints_its_help_and_is_wrong_usage(ghapp: Ghapp, command: list[str]) -> None:
    done = ghapp(*command)

    assert (done.code, done.out) == (2, "")
    assert done.err == ghapp(*command, "--help").out
    assert done.err.startswith("Usage: ghapp")


@pytest.mark.parametrize(("command", "meant"), [(["stauts"], "status"), (["app", "ad"], "add")])
def test_what_was_nearly_typed_is_suggested(ghapp: Ghapp, command: list[str], meant: str) -> None:
    done = ghapp(*command)

    assert done.code == 2
    assert f"no such command {command[-1]!r}; did you mean {meant!r}?" in done.err


def test_the_list_of_commands_cuts_no_sentence(ghapp: Ghapp) -> None:
    for command in ((), ("app",), ("daemon",), ("grant",)):
        assert "..." not in ghapp(*command, "--help").out.partition("Commands:")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["app", "add"],
        ["app", "add", "--app-id", "1", "--client-id", "x", "--signer", "file:/x"],
        ["app", "add", "--app-id", "0", "--signer", "file:/x"],
        ["app", "add", "--app-id", "1"],
        ["app", "add", "--app-id", "1", "--signer", "tpm:x"],
        ["app", "add", "--app-id", "1", "--signer", "file:"],
        ["app", "add", "--app-id", "1", "--signer", "file:/x", "--delete-key-file"],
        ["app", "add", "--app-id", "1", "--signer", "file:/x", "--delete-key-file", "--key", "-"],
        ["app", "add", "--app-id", "1", "--signer", "file:/x", "--host", "https://github.com"],
        ["app", "add", "--app-id", "1", "--signer", "file:/x", "--host", "github"],
        ["setup-git", "--local", "--global"],
        ["token", "a/b", "--read-only", "--permission", "issues=write"],
        ["token", "a/b", "--host", "nonsense"],
        ["token", "nonsense"],
        ["token", ""],
        ["log", "--repo", ""],
        ["log", "--grant", ""],
        ["log", "--since", ""],
        ["repos", ""],
        ["doctor", ""],
        ["token", "a/b", "--permission", "contents"],
        ["token", "a/b", "--permission", "contents=all"],
        ["completion", "tcsh"],
        ["completion"],
    ],
)
def test_wrong_usage_is_2_and_changes_nothing(ghapp: Ghapp, arguments: list[str]) -> None:
    done = ghapp(*arguments)

    assert done.code == 2
    assert done.out == ""
    error, hint = done.err.splitlines()
    assert error.startswith("ghapp: error: ")
    assert error[14:15] == error[14:15].lower()
    assert not error.endswith(".")
    assert hint.startswith("ghapp: hint: ghapp")
    assert not Path(paths.runtime_dir()).exists()


def test_errors_that_no_command_expected_are_one_line(ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []

    @click.command()
    def fail() -> None:
        raise failures[0]

    monkeypatch.setattr(cli, "cli", fail)
    for failure, code, text in (
        (click.ClickException("It broke."), 1, "it broke"),
        (KeyboardInterrupt(), 130, "interrupted; nothing more was changed"),
        (OSError(28, "No space left on device", "/x"), 1, "/x: No space left on device"),
        (OSError("odd"), 1, "odd"),
    ):
        failures[:] = [failure]
        done = ghapp()
        assert (done.code, done.err.strip()) == (code, f"ghapp: error: {text}")


def test_a_reader_that_left_gives_no_traceback() -> None:
    script = "import sys; from ghapp.cli import run; sys.exit(run(['app', 'add', '--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, b"")


def test_the_command_is_installed_and_tells_its_version() -> None:
    for command in ([Path(sys.executable).parent / "ghapp"], [sys.executable, "-m", "ghapp"]):
        done = subprocess.run([*map(str, command), "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("ghapp ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_whole(ghapp: Ghapp, shell: str) -> None:
    done = ghapp("completion", shell)

    assert done.code == 0
    assert "_GHAPP_COMPLETE" in done.out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.out, text=True, check=True)


@pytest.mark.parametrize(("offset", "said"), [(-0.3, "0 s"), (0.4, "0 s"), (-1.2, "-1 s"), (61.0, "+61 s")])
def test_a_clock_that_is_right_is_not_before_itself(
    ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch, offset: float, said: str
) -> None:
    counts = dict.fromkeys(("uptime", "rss_bytes", "leases", "mints", "hits"), 0)
    answer = {"running": True, "version": "1", "pid": 2, "clock_offset": offset, "apps": []} | counts
    monkeypatch.setattr("ghapp.cli.status.call_if_running", lambda _method: answer)

    assert f"\nclock    {said} against GitHub\n" in ghapp("status").out


def test_status_without_a_daemon_is_0_and_starts_none(ghapp: Ghapp) -> None:
    found = ghapp("status", "--json").json()

    assert {"running", "pid", "version", "uptime", "leases", "mints", "hits", "rss_bytes", "clock_offset", "apps"} <= {
        *found
    }
    assert found["running"] is False
    assert "no daemon runs" in ghapp("status").out
    assert "app      none; ghapp setup\n" in ghapp("status").out
    assert ghapp("leases", "--json").json() == []
    assert ghapp("leases").err == "no token lives\n"
    assert ghapp("daemon", "status").code == 1
    assert ghapp("daemon", "status", "--json").code == 1
    assert ghapp("daemon", "stop").err == "no daemon runs\n"
    assert not Path(paths.runtime_dir()).exists()


@pytest.mark.usefixtures("served")
async def test_an_app_is_added_shown_and_removed(ghapp: Ghapp, app: App, key: Path) -> None:
    done = await add(ghapp, app, key)
    assert done.code == 0, done.err
    assert "fingerprint  SHA256:" in done.out
    assert "installed    on acme (selected repositories)" in done.out
    assert done.err == "ghapp: hint: ghapp setup-git\n"

    assert "acme-bot" in (await ghapp.asked("app", "list")).out
    listed = (await ghapp.asked("app", "list", "--json")).json()
    assert listed[0]["name"] == "acme-bot"
    assert listed[0]["app_id"] == app.id
    assert "SHA256:" in (await ghapp.asked("app", "show", "acme-bot")).out
    assert (await ghapp.asked("app", "show", "acme-bot", "--json")).json()["slug"] == "acme-bot"
    assert "app      acme-bot" in (await ghapp.asked("status")).out

    removed = await ghapp.asked("app", "remove", "acme-bot")
    assert removed.code == 0
    assert key in files(key.parent)
    assert (await ghapp.asked("app", "list")).err.startswith("no app is registered\nghapp: hint:")
    missing = await ghapp.asked("app", "remove", "acme-bot")
    assert (missing.code, missing.err) == (
        1,
        "ghapp: error: there is no app acme-bot (E51)\nghapp: hint: ghapp app list\n",
    )
    assert "app      none" in (await ghapp.asked("status")).out


def test_status_without_a_daemon_shows_what_keeps_one_from_starting(ghapp: Ghapp, broken: Path) -> None:
    done = ghapp("status")

    assert done.code == 0
    assert f"config   broken: {broken}: " in done.out
    assert done.err == f"ghapp: hint: edit {broken}\n"


def test_a_restart_with_a_broken_configuration_leaves_the_daemon_alone(ghapp: Ghapp, directory: Path) -> None:
    ghapp("daemon", "start")
    serving = process.lock_holder(str(directory))
    break_config()

    done = ghapp("daemon", "restart")

    assert done.code == 1
    assert "(E51)" in done.err
    assert process.lock_holder(str(directory)) == serving


def add_to_keyring(ghapp: Ghapp, name: str, key: Path, number: str = "7") -> Result:
    done = ghapp("app", "add", name, "--app-id", number, "--key", key, "--no-verify")
    assert done.code == 0, done.err
    return done


def test_a_key_that_another_entry_uses_stays_in_the_keyring(
    ghapp: Ghapp, keyring: Keyring, key: Path, github: StandIn, tmp_path: Path
) -> None:
    assert "warning" not in add_to_keyring(ghapp, "a", key).err
    assert "ghapp: warning: a is the same app under another name\n" in add_to_keyring(ghapp, "b", key).err
    shared = set(keyring.keys)
    other = tmp_path / "other.pem"
    other.write_bytes(github.add_app("other").private_key_pem)

    add_to_keyring(ghapp, "b", other, "8")
    assert shared < set(keyring.keys)
    add_to_keyring(ghapp, "b", key)
    assert set(keyring.keys) == shared
    done = ghapp("app", "remove", "b")
    assert "b is forgotten; its key stays: app a uses it\n" in done.err
    assert set(keyring.keys) == shared
    assert done.err.endswith("as it was for that app\nghapp: hint: ghapp setup-git\n")

    done = ghapp("app", "remove", "a")
    assert done.err == (
        "a is forgotten, and its key\n"
        "git's configuration may still be as it was for that app\nghapp: hint: ghapp setup-git --undo\n"
    )
    assert keyring.keys == {}


def test_an_app_is_forgotten_also_when_the_keyring_is_locked(
    ghapp: Ghapp, keyring: Keyring, key: Path, github: StandIn, tmp_path: Path
) -> None:
    add_to_keyring(ghapp, "a", key)
    (account,) = keyring.keys
    keyring.refuse("dismissed", "delete")

    done = ghapp("app", "remove", "a")

    assert done.code == 0
    assert "warning: a is forgotten; its key is still in the keyring: the keyring's question was dismissed" in done.err
    assert f"hint: unlock the keyring and delete it there: service ghapp, username {account}\n" in done.err
    assert config.load(config.config_file()).apps == ()

    other = tmp_path / "other.pem"
    other.write_bytes(github.add_app("other").private_key_pem)
    add_to_keyring(ghapp, "a", key)
    replaced = add_to_keyring(ghapp, "a", other)
    assert "warning: a former key of a is still in the keyring" in replaced.err
    assert f"username {account}\n" in replaced.err


def test_a_key_file_that_is_left_behind_is_named(ghapp: Ghapp, keyring: Keyring, key: Path) -> None:
    assert f"ghapp: hint: the key is stored; {key} can go: rm {key}\n" in add_to_keyring(ghapp, "a", key).err
    assert keyring.keys


def test_names_of_apps_are_completed(ghapp: Ghapp, keyring: Keyring, key: Path) -> None:
    def complete(*words: str) -> list[str]:
        completer = BashComplete(cli.cli, {}, "ghapp", "_GHAPP_COMPLETE")
        return [item.value for item in completer.get_completions(list(words[:-1]), words[-1])]

    add_to_keyring(ghapp, "acme-bot", key)
    add_to_keyring(ghapp, "other", key)

    assert complete("app", "show", "") == ["acme-bot", "other"]
    assert complete("app", "remove", "a") == ["acme-bot"]
    assert keyring.keys
    break_config()
    assert complete("app", "show", "") == []
    kinds = [item.type for item in BashComplete(cli.cli, {}, "ghapp", "X").get_completions(["app", "add", "--key"], "")]
    assert kinds == ["file"]


def test_both_ids_of_an_app_are_listed(ghapp: Ghapp, keyring: Keyring, key: Path) -> None:
    add_to_keyring(ghapp, "a", key, "4242")
    ghapp("app", "add", "b", "--client-id", "Iv23x", "--key", key, "--no-verify")

    table = ghapp("app", "list").out

    assert table.split("\n")[0].split() == ["NAME", "HOST", "APP", "ID", "CLIENT", "ID", "KEYS"]
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["a", "github.com", "4242", "keyring"],
        ["b", "github.com", "Iv23x", "keyring"],
    ]
    assert keyring.keys


@pytest.mark.usefixtures("served")
async def test_a_key_is_written_for_us_alone_and_the_download_deleted_after(ghapp: Ghapp, app: App, key: Path) -> None:
    target = config.config_dir() / "keys" / "acme.pem"
    arguments = ("app", "add", "bot", "--client-id", app.client_id, "--key", key, "--signer", f"file:{target}")

    done = await ghapp.asked(*arguments, "--delete-key-file", "--json")

    assert done.json()["name"] == "bot"
    assert target.read_bytes() == app.private_key_pem
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert key not in files(key.parent)


async def test_a_key_comes_from_stdin_and_the_same_key_may_be_there_already(
    ghapp: Ghapp, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("app", "add", "--app-id", str(app.id), "--key", "-", "--signer", f"file:{tmp_path}/k", "--no-verify")
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(app.private_key_pem)))
        done = ghapp(*arguments)
        assert done.code == 0
        assert f"app          app-{app.id}" in done.out
        assert "nothing was checked" in done.err

    (tmp_path / "k").write_text("another")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(app.private_key_pem)))
    done = ghapp(*arguments)
    assert done.code == 2
    assert "exists and holds something else" in done.err
    assert (tmp_path / "k").read_text() == "another"


@pytest.mark.usefixtures("served")
async def test_a_key_that_github_does_not_accept_leaves_nothing_behind(
    ghapp: Ghapp, app: App, github: StandIn, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(github.add_app("other").private_key_pem)
    target = tmp_path / "k.pem"

    done = await ghapp.asked(
        *("app", "add", "--app-id", str(app.id), "--key", other, "--signer", f"file:{target}", "--delete-key-file")
    )

    assert done.code == 1
    assert "does not accept the key" in done.err
    assert other.exists()
    assert not target.exists()
    assert not config.config_file().exists()


def test_the_only_copy_of_a_key_is_not_deleted(ghapp: Ghapp, key: Path) -> None:
    done = ghapp("app", "add", "--app-id", "1", "--key", key, "--signer", f"file:{key}", "--delete-key-file")

    assert done.code == 2
    assert "would delete the key itself" in done.err
    assert key.exists()


@pytest.mark.usefixtures("served", "app")
async def test_an_app_that_github_does_not_know_is_named_with_its_page(ghapp: Ghapp, key: Path) -> None:
    done = await ghapp.asked("app", "add", "--app-id", "99", "--signer", f"file:{key}")

    assert done.err == (
        "ghapp: error: GitHub knows no app 99 (E22)\n"
        "ghapp: hint: compare the id with the app's page: https://github.com/settings/apps, "
        "an organisation's: https://github.com/organizations/ORG/settings/apps\n"
    )


@pytest.mark.usefixtures("served")
async def test_what_is_configured_is_shown_also_where_the_key_is_gone(ghapp: Ghapp, app: App, key: Path) -> None:
    await add(ghapp, app, key)
    key.rename(key.with_name("elsewhere"))
    await ghapp.asked("daemon", "status")

    done = await ghapp.asked("app", "show", "acme-bot")

    assert done.code == 1
    assert done.out == f"app          acme-bot\nsigner       file:{key}\n"
    assert f"hint: put the key there, or: ghapp key add FILE --app acme-bot --signer file:{key}\n" in done.err


def test_a_path_that_is_given_as_a_signer_is_mended(ghapp: Ghapp) -> None:
    done = ghapp("app", "add", "--app-id", "1", "--signer", "/k.pem")

    assert done.code == 2
    assert done.err.endswith("ghapp: hint: --signer file:/k.pem\n")


TWO_LEVELS = ("--permission", "contents=read", "--permission", "contents=write")


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        (("token", "acme/rocket"), (), 2),
        (("grant", "create", "acme/rocket"), (), 2),
        (("app", "create", "bot"), (), 2),
        (("setup", "--create"), (), 2),
        (("exec", "acme/rocket"), ("--", "true"), 125),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_permission_has_one_level(ghapp: Ghapp, before: tuple[str, ...], after: tuple[str, ...], status: int) -> None:
    done = ghapp(*before, *TWO_LEVELS, *after)

    assert done.code == status
    assert "contents=read contradicts contents=write" in done.err
    twice = ghapp(*before, *TWO_LEVELS[:2], *TWO_LEVELS[:2], "--host", "?", *after)
    assert "contradicts" not in twice.err


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        (("token", "acme/rocket"), (), 1),
        (("grant", "create", "acme/rocket"), (), 1),
        (("exec", "acme/rocket"), ("--", "true"), 125),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_host_that_no_app_is_for_is_told_without_a_daemon(
    ghapp: Ghapp, directory: Path, before: tuple[str, ...], after: tuple[str, ...], status: int
) -> None:
    config.put_app(config.config_file(), {"name": "bot", "app_id": 1, "keys": ["file:/k.pem"]})

    done = ghapp(*before, "--host", "evil.example", *after)

    assert (done.code, done.out) == (status, "")
    assert "ghapp: error: no app is registered for evil.example (E24)\nghapp: hint: ghapp app list\n" in done.err
    assert not directory.exists()


def test_without_an_app_it_says_so(ghapp: Ghapp, directory: Path) -> None:
    done = ghapp("token", "acme/rocket")
    assert (done.code, done.err) == (
        1,
        "ghapp: error: no app is registered (E51)\nghapp: hint: ghapp setup\n",
    )
    assert not directory.exists()
    assert ghapp("installations").err == "no app is registered\nghapp: hint: ghapp setup\n"


def test_a_token_for_this_checkout_needs_git(ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    done = ghapp("token")

    assert (done.code, done.err.splitlines()[0]) == (1, "ghapp: error: git is not on PATH (E52)")


def test_a_place_that_cannot_be_read_is_named(ghapp: Ghapp, key: Path, tmp_path: Path) -> None:
    done = ghapp("app", "add", "--app-id", "1", "--key", key, "--signer", f"file:{tmp_path}")

    assert done.code == 1
    assert f"cannot read {tmp_path}: Is a directory (E36)" in done.err


def test_a_person_who_is_to_paste_a_key_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"key")))

    assert key_import.read_pem("-") == b"key"
    assert capsys.readouterr().err == "paste the key, end with Ctrl-D\n"


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_what_is_no_key_is_refused(ghapp: Ghapp, tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)

    done = ghapp("app", "add", "--app-id", "1", "--key", source, "--signer", f"file:{tmp_path}/k")

    assert done.code == 1
    assert "(E36)" in done.err
    assert not (tmp_path / "k").exists()


def test_a_place_that_cannot_hold_a_key_is_named(ghapp: Ghapp, key: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = ghapp("app", "add", "--app-id", "1", "--key", key, "--signer", f"file:{tmp_path}/file/k")

    assert done.code == 1
    assert f"{tmp_path}/file" in done.err


@pytest.mark.usefixtures("served", "app")
async def test_an_app_that_is_installed_nowhere_says_how_to(ghapp: Ghapp, github: StandIn, tmp_path: Path) -> None:
    lonely = github.add_app("lonely")
    key = tmp_path / "lonely.pem"
    key.touch(mode=0o600)
    key.write_bytes(lonely.private_key_pem)

    done = await add(ghapp, lonely, key)

    assert "installed    nowhere yet" in done.out
    assert "/installations/new" in done.err
    assert (await ghapp.asked("installations")).err == "no app of yours is installed anywhere\n"
    assert "installed anywhere yet" in (await ghapp.asked("setup-git")).err


@pytest.mark.usefixtures("served")
async def test_tokens_leases_and_installations(
    ghapp: Ghapp, app: App, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(ghapp, app, key)
    found = (await ghapp.asked("token", "acme/rocket", "--json")).json()
    assert set(found) == {"token", "expires_at", "permissions", "repositories"}
    assert found["repositories"] == ["rocket"]
    assert (await ghapp.asked("token", "acme/rocket")).out == found["token"] + "\n"
    less = (await ghapp.asked("token", "acme/rocket", "--permission", "issues=read", "--json")).json()
    assert less["permissions"].get("issues") == "read"
    assert "contents" not in less["permissions"]
    read = (await ghapp.asked("token", "acme/rocket", "--read-only", "--json")).json()
    assert set(read["permissions"].values()) == {"read"}

    leases = (await ghapp.asked("leases", "--json")).json()
    keys = {"id", "app", "owner", "repositories", "permissions", "expires_at", "uses", "token_sha256"}
    assert [set(lease) for lease in leases] == [keys] * 3
    table = await ghapp.asked("leases")
    assert "rocket" in table.out
    assert found["token"] not in table.out
    assert (await ghapp.asked("installations", "--json")).json()[0]["account"] == "acme"
    assert "acme" in (await ghapp.asked("installations")).out
    status = (await ghapp.asked("status", "--json")).json()
    assert (status["running"], status["leases"]) == (True, 3)
    assert (await ghapp.asked("daemon", "status")).code == 0

    origin = tmp_path / "checkout"
    git("init", "-q", str(origin))
    monkeypatch.chdir(origin)
    missing = await ghapp.asked("token")
    assert missing.code == 2
    assert "there is no remote 'origin'" in missing.err
    git("remote", "add", "origin", "https://x@github.com/acme/rocket.git")
    assert (await ghapp.asked("token")).out == found["token"] + "\n"
    assert token_command.repository_of_origin() == ("github.com", "acme/rocket")


@pytest.mark.usefixtures("served")
async def test_git_is_set_up_again_and_undone_byte_for_byte(
    ghapp: Ghapp, app: App, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no app is registered for any host" in (await ghapp.asked("setup-git")).err
    helper = tmp_path / "git-credential-ghapp"
    helper.write_text("#!/bin/sh\n")
    helper.chmod(0o755)
    monkeypatch.setattr(gitconfig, "installed_helper", lambda: helper)
    await add(ghapp, app, key)
    mine = Path.home() / ".gitconfig"
    mine.write_text("[user]\n\tname = Me\n")

    dry = await ghapp.asked("setup-git", "--dry-run")
    assert "+" in dry.out
    assert dry.out.endswith("\n")
    assert not [line for line in dry.out.splitlines()[1:] if "--- " in line[1:]]
    assert dry.err == "https://github.com/acme would be answered by ghapp\n"
    assert mine.read_text() == "[user]\n\tname = Me\n"
    done = await ghapp.asked("setup-git")
    assert done.code == 0
    assert done.err.splitlines()[-2:] == [
        "https://github.com/acme is answered by ghapp",
        "ghapp: hint: git clone https://github.com/acme/REPOSITORY",
    ]
    assert "https://github.com/acme" in (config.config_dir() / "gitconfig").read_text()
    once = mine.read_text()
    again = await ghapp.asked("setup-git", "--host", "github.com")
    assert "nothing to change" in again.err
    assert mine.read_text() == once
    assert "https://github.com is answered by ghapp\n" in (await ghapp.asked("setup-git", "--all")).err
    git("init", "-q", str(tmp_path / "repo"))
    monkeypatch.chdir(tmp_path / "repo")
    assert (await ghapp.asked("setup-git", "--local")).code == 0
    assert (await ghapp.asked("setup-git", "--local", "--undo")).code == 0
    assert (config.config_dir() / "gitconfig").exists()
    monkeypatch.chdir("/")
    outside = await ghapp.asked("setup-git", "--local")
    assert "hint: cd into a clone, or leave out --local\n" in outside.err
    assert "answered" not in outside.err
    await ghapp.asked("app", "remove", "acme-bot")
    assert "hint: ghapp setup-git --undo\n" in (await ghapp.asked("setup-git")).err
    assert '"https://github.com"' in (config.config_dir() / "gitconfig").read_text()
    assert (await ghapp.asked("setup-git", "--host", "ghe.example")).code == 1
    undone = await ghapp.asked("setup-git", "--undo")
    assert "removed" in undone.err
    assert mine.read_text() == "[user]\n\tname = Me\n"


def test_a_daemon_is_started_once_restarted_and_stopped(ghapp: Ghapp, directory: Path) -> None:
    assert ghapp("daemon", "start").err == "the daemon runs\n"
    first = process.lock_holder(str(directory))
    assert first is not None
    assert ghapp("daemon", "start").err == "the daemon runs already\n"
    assert ghapp("daemon", "restart").err == "the daemon runs\n"
    second = process.lock_holder(str(directory))
    assert second not in {None, first}
    assert process.wait_for_end(first, 0)
    done = ghapp("daemon", "run")
    assert (done.code, done.err) == (
        1,
        f"ghapp: error: the daemon runs already (pid {second}) (E41)\nghapp: hint: ghapp daemon stop\n",
    )
    assert ghapp("daemon", "stop").err == "the daemon is stopped\n"
    assert second is not None
    assert process.wait_for_end(second, 0)
    assert not (directory / "git.sock").exists()


@pytest.mark.usefixtures("served")
async def test_stopping_tells_what_was_revoked(
    ghapp: Ghapp, app: App, key: Path, github: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "wait_for_end", lambda *_: True)  # the daemon is this process
    await add(ghapp, app, key)
    await ghapp.asked("token", "acme/rocket")
    await ghapp.asked("token", "acme/rocket", "--read-only")
    github.faults.add("/installation/token", method="DELETE", status=501, times=1)  # which is not tried again

    done = await ghapp.asked("daemon", "stop")

    assert done.err == (
        "revoked 1 token\n1 token could not be revoked; GitHub ends it within the hour\nthe daemon is stopped\n"
    )


def test_a_daemon_that_hangs_is_stopped_all_the_same(
    ghapp: Ghapp, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_commands, "END_LIMIT", 0.2)
    monkeypatch.setattr(daemon_commands, "TERM_LIMIT", 0.2)
    autostart.ensure(paths.control_socket())
    pid = process.lock_holder(str(directory))
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    assert ghapp("daemon", "stop").code == 0

    assert process.wait_for_end(pid, 1)


def test_one_that_ends_by_anothers_wish_is_waited_for(
    ghapp: Ghapp, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_commands, "END_LIMIT", 0.2)
    directory.mkdir(mode=0o700)
    with holding_lock(directory, DEAF) as holder:
        done = ghapp("daemon", "stop")
        assert done.code == 1
        assert "the daemon does not end (E41)" in done.err
        assert holder.poll() is None
        monkeypatch.setattr(daemon_commands, "END_LIMIT", 5.0)
        threading.Timer(0.1, holder.kill).start()
        assert ghapp("daemon", "stop").code == 0


def test_a_process_that_cannot_be_ended_is_named(
    ghapp: Ghapp, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_commands, "END_LIMIT", 0.0)
    monkeypatch.setattr(process, "wait_for_end", lambda *_: False)
    directory.mkdir(mode=0o700)
    with holding_lock(directory, WITH_PID) as holder:
        done = ghapp("daemon", "stop")
        assert f"the daemon (pid {holder.pid}) does not end" in done.err
        assert f"hint: kill -9 {holder.pid}" in done.err


def test_a_start_that_fails_keeps_its_own_code(ghapp: Ghapp, directory: Path) -> None:
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)

    for command in (("daemon", "start"), ("installations",)):
        done = ghapp(*command)
        assert done.code == 1
        assert done.err.count("(E") == 1
        assert "is open to others (E43)\nghapp: hint: chmod 700" in done.err


def test_run_serves_in_the_foreground(directory: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "ghapp", "daemon", "run"], stderr=subprocess.PIPE) as child:
        try:
            autostart.ensure(paths.control_socket())
            eventually(lambda: process.lock_holder(str(directory)) is not None)
            holder = process.lock_holder(str(directory))
        finally:
            child.terminate()
        # git's own start may have been quicker; then this one has said so, or still listens to nobody.
        assert child.wait(5) in ({0} if holder == child.pid else {0, 1, -signal.SIGTERM})


def test_another_listener_on_our_path_is_told_from_ours(
    ghapp: Ghapp, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(mode=0o700)
    with listener(directory / "control.sock", greet):
        done = ghapp("status")
        assert done.code == 1
        assert "is not served by ghapp" in done.err
    (directory / "control.sock").unlink()
    with listener(directory / "control.sock", saying(b"")):
        monkeypatch.setattr(daemon_client, "GLANCE", 0.1)
        assert "did not answer within 0 s" in ghapp("status").err


def test_a_daemon_that_goes_away_each_time_is_given_up(ghapp: Ghapp, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with listener(directory / "control.sock", hang_up):
        done = ghapp("installations")
    assert (done.code, done.err) == (
        1,
        "ghapp: error: the daemon went away (E41)\nghapp: hint: ghapp daemon status\n",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can listen as another user")
def test_a_listener_of_another_user_is_an_error(ghapp: Ghapp, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with listener_of_another_user(directory / "control.sock"):
        done = ghapp("status")
    assert done.code == 1
    assert "is served by another user (E44)" in done.err


def test_errors_without_a_code_get_ours() -> None:
    assert str(daemon_client.started_error(OSError("odd"))) == "odd (E41)"


def test_what_others_named_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME",), [("a\x1b[2Jb[red]c",)])
    output.warn("x\x07y")

    captured = capsys.readouterr()
    assert "a?[2Jb[red]c" in captured.out
    assert captured.err == "ghapp: warning: x?y\n"


def test_a_table_keeps_long_names_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "MORE"), [("x" * 150, "y" * 150)])

    assert f"{'x' * 150}  {'y' * 150}" in capsys.readouterr().out


def test_a_narrow_terminal_cuts_nothing_that_is_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    names, ends, url = "rocket, station, shuttle, probe", "2026-11-21T04:00:00Z", "https://github.com/x/" + "y" * 30

    output.print_table(("ID", "REPOSITORIES", "EXPIRES", "SETTINGS"), [("Iv23lixxxxxxxxxxxxxx", names, ends, url)])

    out = capsys.readouterr().out
    assert "Iv23lixxxxxxxxxxxxxx" in out
    assert ends in out
    assert url in out
    assert "\x1b[1m" in out


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_plain_terminal_gets_no_bold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)

    output.print_table(("NAME",), [("a",)])

    assert "\x1b" not in capsys.readouterr().out


def test_one_is_not_told_as_many() -> None:
    assert (output.counted(1, "key"), output.counted(2, "key")) == ("1 key", "2 keys")


def test_questions_are_asked_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output.confirm("sure?", yes=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    output.confirm("sure?", yes=True)
    with pytest.raises(click.ClickException, match="nothing was changed"):
        output.confirm("sure?", yes=False)


def test_a_question_that_is_interrupted_ends_its_line(ghapp: Ghapp, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert ghapp("app", "add", "acme-bot", "--app-id", "1", "--no-verify", "--signer", f"file:{key}").code == 0
    for answer, code, end in (
        ("", 130, "[y/N]: \nghapp: error: interrupted; nothing more was changed\n"),  # ctrl-d
        ("n\n", 1, "[y/N]: ghapp: error: nothing was changed\n"),
    ):
        said = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", said)
            patch.setattr(sys, "stdin", Terminal(answer))
            assert cli.run(["app", "remove", "acme-bot"]) == code
        assert said.getvalue() == f"forget acme-bot? {end}"
    assert [app.name for app in config.load(config.config_file()).apps] == ["acme-bot"]


def test_no_command_is_missing_from_the_list() -> None:
    modules = {path.stem for path in (ROOT / "src" / "ghapp" / "cli").glob("*.py")}

    assert modules - {"__init__", "output", "daemon_client", "host", "key_import", "app_create", "lent"} == {
        name.replace("-", "_") for name in cli._COMMANDS
    }


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">/dev/full", "<&- >&- 2>&-"])
def test_closed_or_full_output_is_no_traceback(redirection: str) -> None:
    command = f"'{sys.executable}' -m ghapp status --json {redirection}"

    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd="/", timeout=30)

    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode in {0, 1}


def words_of(hint: ast.expr) -> list[str]:
    """Return a hint's words, as a shell takes them; x for what is put in. Raises `ValueError`."""
    parts = hint.values if isinstance(hint, ast.JoinedStr) else [hint]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)
    return shlex.split(text, comments=True) if text.startswith("ghapp ") else []


def hints_in(module: Path) -> Iterator[ast.expr]:
    """Yield what is said as a hint there, each branch of it."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
        given += node.args[:1] if isinstance(node.func, ast.Name) and node.func.id == "hint" else []
        for each in given:
            branches = [each.body, each.orelse] if isinstance(each, ast.IfExp) else [each]
            yield from (branch for branch in branches if isinstance(branch, ast.Constant | ast.JoinedStr))


MODULES = sorted((ROOT / "src" / "ghapp").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=[str(path.relative_to(ROOT / "src" / "ghapp")) for path in MODULES])
def test_a_hint_that_begins_with_our_name_is_one_command_and_nothing_else(module: Path) -> None:
    for hint in hints_in(module):
        try:
            words = words_of(hint)[1:]
        except ValueError as error:
            pytest.fail(f"line {hint.lineno}: {error}")
        command: click.Command = cli.cli
        context = click.Context(command, info_name="ghapp")
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(context, words.pop(0))
            assert found is not None, f"line {hint.lineno}: no such command"
            command, context = found, click.Context(found, parent=context)
        given = words[: words.index("--")] if "--" in words else words
        _, left_over, _ = command.make_parser(context).parse_args(given)
        assert not left_over, f"line {hint.lineno}: {left_over} says nothing to {context.command_path}"


def test_hints_are_found_where_they_are_said() -> None:
    found = [words for module in MODULES for hint in hints_in(module) if (words := words_of(hint))]

    assert len(found) > 20
    assert ["ghapp", "grant", "run-args", "x", "x"] in found
