"""``ghapp key``: several keys an app, and what people and programs see of them."""

import asyncio
import io
import json
import stat
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from click.shell_completion import BashComplete
from command_line import Ghapp, Result
from fakes_keyring import Keyring
from fakes_process import LIMIT, running, talk
from standin.model import App
from standin.server import StandIn

from ghapp import cli, config, paths
from ghapp.errors import ConfigError
from ghapp.private_key import fingerprint, load_key


PERMISSIONS = {"contents": "write", "issues": "write"}


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> App:
    """An app with one key in a file, registered as acme-bot."""
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    register(app, write(tmp_path / "old.pem", app.private_key_pem))
    return app


@pytest.fixture
async def served(directory: Path, app: App) -> AsyncIterator[Path]:
    assert app.private_keys  # it is registered before the daemon starts
    async with running(directory):
        yield directory


def write(path: Path, pem: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return path


def register(app: App, *places: Path, name: str = "") -> None:
    references = [f"file:{place}" for place in places]
    table = {"name": name or app.slug, "client_id": app.client_id, "app_id": app.id, "keys": references}
    config.put_app(config.config_file(), table)


def failed(result: Result) -> Any:
    """Return what a command that failed printed for programs."""
    assert result.code == 1, result.err
    return json.loads(result.out)


def name_of(pem: bytes) -> str:
    return fingerprint(load_key(pem, source="test"))


def references(name: str = "acme-bot") -> list[str]:
    (found,) = (app for app in config.load(config.config_file()).apps if app.name == name)
    return list(found.keys)


async def fill(directory: Path, repository: str = "acme/rocket") -> dict[str, str]:
    """Ask as git's client does; a name of its own for each question, where a held token would prove nothing."""
    request = f"action=get\ntimeout=1\nghapp=1\nprotocol=https\nhost=github.com\npath={repository}.git\n".encode()
    answer = await asyncio.to_thread(talk, directory / "git.sock", request)
    return dict(line.split("=", 1) for line in answer.decode().splitlines())


def rejections(github: StandIn) -> int:
    return sum(request.status == 401 for request in github.requests)


# -- add ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_a_second_key_is_stored_verified_and_appended(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    pem = app.add_key()
    download, target = write(tmp_path / "new.pem", pem), config.config_dir() / "keys" / "new.pem"
    elsewhere = tmp_path / "a directory" / "new.pem"

    refused = await ghapp.asked("key", "add", download, "--app", "acme-bot", "--signer", f"file:{elsewhere}")
    done = await ghapp.asked("key", "add", download, "--app", "acme-bot", "--signer", f"file:{target}")

    assert done.code == 0, done.err
    assert done.out == f"app          acme-bot\nsigner       file:{target}\nfingerprint  {name_of(pem)}\n"
    assert done.err == f"ghapp: hint: the key is stored; {download} can go: rm {download}\n"
    assert references() == [f"file:{tmp_path}/old.pem", f"file:{target}"]
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (pem, 0o600)
    assert refused.code == 1
    assert (
        f"there is no directory {elsewhere.parent} (E36)\nghapp: hint: mkdir -p '{elsewhere.parent}'\n" in refused.err
    )
    assert not elsewhere.parent.exists()


@pytest.mark.usefixtures("served")
async def test_the_same_key_twice_is_no_change_and_says_so(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    download = write(tmp_path / "again.pem", app.private_key_pem)
    before, name = config.config_file().read_bytes(), name_of(app.private_key_pem)

    done = await ghapp.asked("key", "add", download, "--signer", f"file:{tmp_path}/copy.pem")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"acme-bot has the key {name} already, as file:{tmp_path}/old.pem; nothing was changed\n"
    assert (await ghapp.asked("key", "add", download, "--signer", f"file:{tmp_path}/copy.pem", "--json")).json() == {
        "app": "acme-bot",
        "fingerprint": name,
        "signer": f"file:{tmp_path}/old.pem",
        "added": False,
    }
    assert config.config_file().read_bytes() == before
    assert not (tmp_path / "copy.pem").exists()

    deleted = await ghapp.asked("key", "add", download, "--signer", f"file:{tmp_path}/copy.pem", "--delete-key-file")
    assert deleted.code == 0
    assert not download.exists()


@pytest.mark.usefixtures("served", "app")
async def test_a_key_that_github_does_not_accept_is_not_added_and_leaves_nothing_behind(
    ghapp: Ghapp, github: StandIn, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.pem", github.add_app("other").private_key_pem)
    before, target = references(), tmp_path / "k.pem"

    done = await ghapp.asked("key", "add", other, "--signer", f"file:{target}", "--delete-key-file")

    assert done.code == 1
    assert f"does not accept the key {name_of(other.read_bytes())} for app" in done.err
    assert "(E22)" in done.err
    assert not target.exists()
    assert references() == before
    unasked = await ghapp.asked("key", "add", other, "--signer", f"file:{target}", "--no-verify", "--json")
    assert unasked.json()["signer"] == f"file:{target}"
    assert references() == [*before, f"file:{target}"]


@pytest.mark.usefixtures("served")
async def test_a_key_file_is_registered_where_it_lies(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    place = write(tmp_path / "mounted.pem", app.add_key())

    done = await ghapp.asked("key", "add", "--signer", f"file:{place}", "--app", "acme-bot")

    assert (done.code, done.err) == (0, "")
    assert references()[1] == f"file:{place}"


async def test_a_key_comes_from_stdin(ghapp: Ghapp, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(app.add_key())))

    done = ghapp("key", "add", "-", "--signer", f"file:{tmp_path}/k.pem", "--no-verify")

    assert done.code == 0
    assert done.err == "ghapp: hint: nothing was checked; 'ghapp key verify' asks GitHub\n"
    assert references()[1] == f"file:{tmp_path}/k.pem"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add"], "give the key: FILE, - for stdin, or --signer file:PATH where one lies"),
        (["add", "-", "--delete-key-file"], "--delete-key-file goes with FILE"),
        (["add", "x", "--signer", "tpm:1"], "there is no signer 'tpm:1'; this version knows keyring and file:PATH"),
        (["add", "x", "--signer", "/k.pem"], "there is no signer /k.pem (E01)"),
        (["remove"], "missing argument 'FINGERPRINT'"),
    ],
)
@pytest.mark.usefixtures("app")
def test_wrong_usage_is_2_and_changes_nothing(ghapp: Ghapp, arguments: list[str], message: str) -> None:
    before = config.config_file().read_bytes()

    done = ghapp("key", *arguments)

    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[0] == f"ghapp: error: {message}"
    assert done.err.splitlines()[1].startswith("ghapp: hint: ")
    assert config.config_file().read_bytes() == before


@pytest.mark.parametrize("wanted", ["SHA256:zzzz", "SHA256:", "zzzz"])
@pytest.mark.usefixtures("app")
def test_a_key_that_is_not_there_cannot_be_removed(ghapp: Ghapp, wanted: str) -> None:
    done = ghapp("key", "remove", wanted, "--force")

    assert (done.code, done.err) == (
        1,
        f"ghapp: error: there is no key {wanted} (E51)\nghapp: hint: ghapp key list\n",
    )


def test_the_only_copy_of_a_key_is_not_deleted(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    new = write(tmp_path / "new.pem", app.add_key())
    link = tmp_path / "link.pem"
    link.symlink_to(tmp_path / "old.pem")

    same = ghapp("key", "add", new, "--signer", f"file:{new}", "--delete-key-file")
    used = ghapp("key", "add", link, "--signer", f"file:{new}", "--delete-key-file")

    assert (same.code, used.code) == (2, 2)
    assert "would delete the key itself: --signer names the same file" in same.err
    assert "would delete the key itself: acme-bot uses it there" in used.err
    assert new.exists()
    assert link.exists()


@pytest.mark.usefixtures("app")
def test_with_several_apps_the_app_is_to_be_named(ghapp: Ghapp, github: StandIn, tmp_path: Path) -> None:
    other = github.add_app("other")
    register(other, write(tmp_path / "other.pem", other.private_key_pem))

    done = ghapp("key", "add", tmp_path / "other.pem")

    assert done.code == 2
    assert done.err == (
        "ghapp: error: there are several apps: acme-bot, other (E01)\n"
        f"ghapp: hint: ghapp key add {tmp_path / 'other.pem'} --app acme-bot\n"
    )
    assert ghapp("key", "list", "--app", "nobody").err == (
        "ghapp: error: there is no app nobody (E51)\nghapp: hint: ghapp app list\n"
    )


def test_without_an_app_it_says_so(ghapp: Ghapp, tmp_path: Path) -> None:
    assert ghapp("key", "list").err == "no app is registered\nghapp: hint: ghapp setup\n"
    assert ghapp("key", "list", "--json").json() == []
    for arguments in (["add", tmp_path / "k"], ["verify"]):
        done = ghapp("key", *arguments)
        assert done.code == 1
        assert done.err.splitlines()[-1] == "ghapp: hint: ghapp setup"


# -- list and verify ---------------------------------------------------------------------------------------------------


def test_keys_are_listed_without_asking_github(ghapp: Ghapp, app: App, github: StandIn, tmp_path: Path) -> None:
    register(app, tmp_path / "old.pem", tmp_path / "gone.pem")

    found = ghapp("key", "list", "--json").json()
    shown = ghapp("key", "list", "--app", "acme-bot")

    name = name_of(app.private_key_pem)
    assert [(entry["app"], entry["fingerprint"], entry["signer"], entry["usable"]) for entry in found] == [
        ("acme-bot", name, f"file:{tmp_path}/old.pem", True),
        ("acme-bot", None, f"file:{tmp_path}/gone.pem", False),
    ]
    assert [line.split() for line in shown.out.splitlines()] == [
        ["APP", "FINGERPRINT", "SIGNER", "USABLE"],
        ["acme-bot", name, f"file:{tmp_path}/old.pem", "yes"],
        ["acme-bot", "?", f"file:{tmp_path}/gone.pem", "no"],
    ]
    assert f"ghapp: warning: file:{tmp_path}/gone.pem: cannot open {tmp_path}/gone.pem" in shown.err
    assert "ghapp: hint: put the key there, or: ghapp key add FILE --app acme-bot --signer file:/" in shown.err
    assert github.requests == []
    assert not Path(paths.runtime_dir()).exists()


@pytest.mark.usefixtures("served")
async def test_each_key_is_asked_at_github_and_the_dead_one_named(
    ghapp: Ghapp, app: App, github: StandIn, tmp_path: Path
) -> None:
    old, new = app.private_key_pem, app.add_key()
    register(app, tmp_path / "old.pem", write(tmp_path / "new.pem", new), tmp_path / "gone.pem")

    assert [entry["status"] for entry in failed(await ghapp.asked("key", "verify", "--json"))] == [
        "accepted",
        "accepted",
        "unavailable",
    ]
    app.remove_key(old)
    found = failed(await ghapp.asked("key", "verify", "--json"))
    assert [(entry["fingerprint"], entry["status"]) for entry in found] == [
        (name_of(old), "rejected"),
        (name_of(new), "accepted"),
        (None, "unavailable"),
    ]
    shown = await ghapp.asked("key", "verify", "--app", "acme-bot")
    assert shown.code == 1
    assert [line.split() for line in shown.out.splitlines()][-1] == ["acme-bot", "?", "unavailable"]
    assert f"warning: file:{tmp_path}/gone.pem is unavailable: cannot open {tmp_path}/gone.pem" in shown.err
    assert f"ghapp: warning: {name_of(old)} is rejected: GitHub does not accept the key" in shown.err
    assert f"ghapp: hint: ghapp key remove {name_of(old)} --app acme-bot\n" in shown.err
    assert f"ghapp: warning: file:{tmp_path}/gone.pem is unavailable: cannot open" in shown.err
    there = f"--app acme-bot --signer file:{tmp_path}/gone.pem"
    assert f"ghapp: hint: put the key there, or: ghapp key add FILE {there}\n" in shown.err
    assert [line.split()[-1] for line in shown.out.splitlines()[1:]] == ["rejected", "accepted", "unavailable"]

    only = await ghapp.asked("key", "verify", name_of(new)[:12])
    assert (only.code, only.err) == (0, "")
    assert rejections(github) == 2  # each time it was asked, and only then


@pytest.mark.usefixtures("served")
async def test_what_github_says_now_counts_for_git_at_once(ghapp: Ghapp, app: App, served: Path) -> None:
    key = app.private_keys.pop()
    assert "E22" in (await fill(served))["error"]
    assert failed(await ghapp.asked("key", "verify", "--json"))[0]["status"] == "rejected"
    app.private_keys.append(key)
    assert "E22" in (await fill(served))["error"]

    assert (await ghapp.asked("key", "verify")).code == 0

    assert "password" in await fill(served)


@pytest.mark.usefixtures("served", "app")
async def test_a_github_that_fails_says_nothing_of_a_key(ghapp: Ghapp, github: StandIn) -> None:
    github.faults.add("^/app", times=None, status=403, headers={"retry-after": "60"}, body='{"message": "slow down"}')

    done = await ghapp.asked("key", "verify")

    assert done.code == 1
    assert "is not known to work or not: GitHub limits this app's requests" in done.err
    assert "unknown" in done.out


@pytest.mark.usefixtures("served", "app")
async def test_on_a_terminal_there_is_progress_and_the_same_table(
    ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = await ghapp.asked("key", "verify")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for a terminal
    monkeypatch.setenv("NO_COLOR", "1")

    done = await ghapp.asked("key", "verify")

    assert (done.code, plain.err) == (0, "")
    assert "asking GitHub" in done.err
    assert "accepted" in done.out


def test_a_daemon_that_cannot_be_started_is_the_error(
    ghapp: Ghapp, app: App, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", str(tmp_path / "file" / "run"))

    done = ghapp("key", "verify")

    assert app.private_keys
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("ghapp: error: ")


# -- remove ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_a_key_is_removed_by_the_beginning_of_its_fingerprint_and_its_file_stays(
    ghapp: Ghapp, app: App, tmp_path: Path
) -> None:
    old, new = app.private_key_pem, app.add_key()
    register(app, tmp_path / "old.pem", write(tmp_path / "new.pem", new))
    short = name_of(old).removeprefix("SHA256:")[:6]

    done = await ghapp.asked("key", "remove", short)

    assert done.code == 0, done.err
    assert done.err == f"{name_of(old)} is removed from acme-bot; its key stays in {tmp_path}/old.pem\n"
    assert references() == [f"file:{tmp_path}/new.pem"]
    assert (tmp_path / "old.pem").exists()


@pytest.mark.usefixtures("app")
def test_an_ambiguous_beginning_lists_what_it_could_mean(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    names = ("SHA256:aab=", "SHA256:aac=")
    table = {"name": "acme-bot", "app_id": app.id, "keys": [f"keyring:{name}" for name in names]}
    config.put_app(config.config_file(), table)
    register(app, tmp_path / "old.pem", name="second")
    register(app, tmp_path / "old.pem", name="third")

    done = ghapp("key", "remove", "SHA256:aa")
    shared = ghapp("key", "remove", name_of(app.private_key_pem))

    assert done.code == 2
    assert done.err == (
        "ghapp: error: SHA256:aa is the beginning of several keys: SHA256:aab= of acme-bot, SHA256:aac= of acme-bot"
        " (E01)\nghapp: hint: give more of it\n"
    )
    assert shared.code == 2
    assert shared.err.endswith("ghapp: hint: --app second\n")


@pytest.mark.usefixtures("served")
async def test_the_last_key_that_works_stays_without_force(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    old, new = app.private_key_pem, app.add_key()
    register(app, tmp_path / "old.pem", write(tmp_path / "new.pem", new))
    app.remove_key(new)
    before = references()

    done = await ghapp.asked("key", "remove", name_of(old), "--yes")
    assert done.code == 1
    assert f"error: {name_of(old)} is the last key of acme-bot that works; {name_of(new)}: GitHub does" in done.err
    assert "; --force removes it all the same (E51)\n" in done.err
    assert done.err.endswith("ghapp: hint: ghapp key add FILE --app acme-bot\n")
    assert references() == before

    assert (await ghapp.asked("key", "remove", name_of(new))).code == 0
    assert references() == before[:1]


@pytest.mark.usefixtures("served")
async def test_where_github_cannot_tell_no_key_is_removed(ghapp: Ghapp, app: App, github: StandIn) -> None:
    github.faults.add("^/app", times=None, status=403, headers={"retry-after": "60"}, body='{"message": "slow down"}')

    done = await ghapp.asked("key", "remove", name_of(app.private_key_pem))

    assert done.code == 1
    assert "is perhaps the last key of acme-bot that works; " in done.err
    assert len(references()) == 1


@pytest.mark.usefixtures("served")
async def test_an_app_without_a_key_says_so_until_it_has_one_again(
    ghapp: Ghapp, app: App, served: Path, tmp_path: Path
) -> None:
    done = await ghapp.asked("key", "remove", name_of(app.private_key_pem), "--force")
    assert done.code == 0
    assert done.err.endswith("ghapp: hint: ghapp key add FILE --app acme-bot\n")
    assert references() == []

    answer = await fill(served)
    assert (answer["error"], answer["hint"]) == (
        "the app acme-bot has no key (E51)",
        "ghapp key add FILE --app acme-bot",
    )
    assert (await ghapp.asked("key", "list")).err == "there is no key\nghapp: hint: ghapp key add FILE --app acme-bot\n"
    assert (await ghapp.asked("key", "verify")).err.startswith("ghapp: error: there is no key to verify (E51)\n")
    shown = await asyncio.to_thread(ghapp, "app", "show", "acme-bot")
    assert (shown.code, shown.out) == (1, "app          acme-bot\n")

    assert (await ghapp.asked("key", "add", "--signer", f"file:{tmp_path}/old.pem")).code == 0
    assert "password" in await fill(served)


@pytest.mark.usefixtures("served")
async def test_a_key_whose_file_is_gone_is_removed_by_its_path(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    register(app, tmp_path / "gone.pem", tmp_path / "old.pem")

    done = await ghapp.asked("key", "remove", tmp_path / "gone.pem")

    assert done.code == 0, done.err
    assert references() == [f"file:{tmp_path}/old.pem"]


def add_to_keyring(ghapp: Ghapp, app: App, pem: bytes, tmp_path: Path) -> str:
    download = write(tmp_path / "download.pem", pem)
    done = ghapp("key", "add", download, "--app", app.slug, "--no-verify", "--delete-key-file", "--json")
    found: str = done.json()["fingerprint"]
    assert not download.exists()
    return found


def test_a_key_leaves_the_keyring_with_its_entry(ghapp: Ghapp, app: App, keyring: Keyring, tmp_path: Path) -> None:
    name = add_to_keyring(ghapp, app, app.add_key(), tmp_path)
    assert list(keyring.keys) == [f"github.com/{app.id}/{name}"]
    assert ["acme-bot", name, "keyring", "yes"] in [line.split() for line in ghapp("key", "list").out.splitlines()]

    done = ghapp("key", "remove", name, "--force")

    assert done.err == f"{name} is removed from acme-bot, and from the keyring\n"
    assert keyring.keys == {}
    assert len(references()) == 1


def test_a_key_that_another_entry_uses_stays_in_the_keyring(
    ghapp: Ghapp, app: App, keyring: Keyring, tmp_path: Path
) -> None:
    name = add_to_keyring(ghapp, app, app.add_key(), tmp_path)
    table = {"name": "twin", "app_id": app.id, "keys": [f"keyring:{name}"]}
    config.put_app(config.config_file(), table)

    done = ghapp("key", "remove", name, "--force", "--app", "acme-bot")

    assert done.err == f"{name} is removed from acme-bot; it stays in the keyring: app twin uses it\n"
    assert len(keyring.keys) == 1


def test_a_key_is_removed_also_when_the_keyring_is_locked(
    ghapp: Ghapp, app: App, keyring: Keyring, tmp_path: Path
) -> None:
    name = add_to_keyring(ghapp, app, app.add_key(), tmp_path)
    keyring.refuse("dismissed", "delete")

    done = ghapp("key", "remove", name, "--force")

    assert done.code == 0
    assert f"ghapp: warning: {name} is removed from acme-bot; it is still in the keyring: the keyring's" in done.err
    assert f"ghapp: hint: unlock the keyring and delete it there: service ghapp, username github.com/{app.id}" in (
        done.err
    )
    assert len(references()) == 1


def test_a_key_that_was_lost_from_the_keyring_is_stored_again(
    ghapp: Ghapp, app: App, keyring: Keyring, tmp_path: Path
) -> None:
    pem = app.add_key()
    name = add_to_keyring(ghapp, app, pem, tmp_path)
    before = references()
    keyring.keys.clear()

    assert add_to_keyring(ghapp, app, pem, tmp_path) == name

    assert len(keyring.keys) == 1
    assert references() == before


def test_fingerprints_and_apps_are_completed(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    def complete(*words: str) -> list[str]:
        completer = BashComplete(cli.cli, {}, "ghapp", "_GHAPP_COMPLETE")
        return [item.value for item in completer.get_completions(list(words[:-1]), words[-1])]

    register(app, tmp_path / "old.pem", tmp_path / "gone.pem")

    name = name_of(app.private_key_pem)
    bare = name.removeprefix("SHA256:")
    assert complete("key", "remove", "SHA") == [name]
    assert complete("key", "remove", "") == complete("key", "verify", bare[:2]) == [bare]
    assert ghapp("key", "remove", "--force", bare).code == 0
    assert complete("key", "remove", "") == []
    assert complete("key", "list", "--app", "") == ["acme-bot"]
    config.config_file().write_text("[deamon]")
    assert complete("key", "list", "--app", "") == []
    assert ghapp("key", "list").code == 1


# -- the daemon --------------------------------------------------------------------------------------------------------


async def test_git_is_served_by_the_living_key_and_the_dead_one_is_shown_once(
    app: App, github: StandIn, directory: Path, tmp_path: Path
) -> None:
    old = app.private_key_pem
    register(app, tmp_path / "old.pem", write(tmp_path / "new.pem", app.add_key()), tmp_path / "gone.pem")
    app.remove_key(old)

    async with running(directory):
        for _ in range(3):
            answer = await fill(directory)
            assert "password" in answer, answer
            github.revoke(answer["password"])
            attributes = f"protocol=https\nhost=github.com\npath=acme/rocket.git\npassword={answer['password']}\n"
            await asyncio.to_thread(talk, directory / "git.sock", f"action=erase\ntimeout=1\n{attributes}".encode())

    assert len(github.mints) == 3
    assert rejections(github) == 1


async def test_a_signer_that_makes_no_sense_is_passed_over_as_well(app: App, directory: Path, tmp_path: Path) -> None:
    references = ["keyring:nonsense", f"file:{tmp_path}/old.pem"]
    config.put_app(config.config_file(), {"name": "acme-bot", "app_id": app.id, "keys": references})

    async with running(directory):
        assert "password" in await fill(directory)


@pytest.mark.usefixtures("served")
async def test_an_app_is_shown_with_all_its_keys_also_where_the_first_is_dead(
    ghapp: Ghapp, app: App, tmp_path: Path
) -> None:
    old, new = app.private_key_pem, app.add_key()
    register(app, tmp_path / "old.pem", write(tmp_path / "new.pem", new))
    app.remove_key(old)

    done = await asyncio.to_thread(ghapp, "app", "show", "acme-bot")

    assert done.out.splitlines()[1:4] == [
        f"signer       file:{tmp_path}/old.pem",
        f"signer       file:{tmp_path}/new.pem",
        f"fingerprint  {name_of(new)}",
    ]


# -- config.toml -------------------------------------------------------------------------------------------------------


def test_two_who_edit_at_the_same_moment_both_get_their_way(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    inside, done = threading.Event(), threading.Event()

    def add(name: str) -> dict[str, object]:
        return {"name": name, "app_id": 1, "keys": ["file:/k"]}

    def second() -> None:
        inside.wait(LIMIT)
        config.put_app(path, add("second"))
        done.set()

    def slowly(document: tomlkit.TOMLDocument) -> None:
        inside.set()
        assert not done.wait(0.3)  # without a lock this takes milliseconds, and its app is lost
        document["app"] = [add("first")]

    thread = threading.Thread(target=second)
    thread.start()
    try:
        config.edit(path, slowly)
    finally:
        thread.join()

    assert sorted(app.name for app in config.load(path).apps) == ["first", "second"]


def test_a_key_stays_when_those_it_was_judged_with_are_gone(app: App, tmp_path: Path) -> None:
    path = config.config_file()
    register(app, tmp_path / "one", tmp_path / "two")
    one, two = references()
    config.remove_key(path, "acme-bot", one, others=[two])

    with pytest.raises(ConfigError, match="the keys of acme-bot were changed meanwhile"):
        config.remove_key(path, "acme-bot", two, others=[one])

    assert references() == [two]


def test_editing_keys_keeps_comments_and_refuses_an_app_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    text = '[[app]]\nname = "a"\napp_id = 1\nkeys = [\n    "file:/one", # the first\n]\n'
    write(path, text.encode())

    config.add_key(path, "a", "file:/two")
    config.add_key(path, "a", "file:/two")
    assert config.load(path).apps[0].keys == ("file:/one", "file:/two")
    assert "# the first" in path.read_text()
    config.remove_key(path, "a", "file:/two", others=[])
    assert config.load(path).apps[0].keys == ("file:/one",)
    with pytest.raises(ConfigError, match="there is no app b"):
        config.add_key(path, "b", "file:/two")


@pytest.mark.usefixtures("app")
def test_without_a_keyring_the_hint_stores_the_key_in_a_file(
    ghapp: Ghapp, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent")
    fresh = write(tmp_path / "fresh.pem", app.add_key())
    kept = config.config_dir() / "keys"
    kept.mkdir(parents=True)
    (kept / "acme-bot.pem").touch()

    added = ghapp("key", "add", fresh, "--app", "acme-bot", "--no-verify")
    anew = ghapp("app", "add", "--app-id", str(app.id), "--key", fresh, "--no-verify")

    place = f"--signer file:{kept}/acme-bot-2.pem"
    assert added.err.endswith(f"hint: ghapp key add --app acme-bot --no-verify {fresh} {place}\n")
    place = f"--signer file:{kept}/{app.id}.pem"
    assert anew.err.endswith(f"hint: ghapp app add --app-id {app.id} --key {fresh} --no-verify {place}\n")
    assert ghapp(*added.err.splitlines()[-1].removeprefix("ghapp: hint: ghapp ").split()).code == 0


def test_without_a_terminal_a_removal_asks_nobody_and_its_help_says_so(ghapp: Ghapp) -> None:
    for command in (("key", "remove"), ("app", "remove")):
        said = " ".join(ghapp(*command, "--help").out.split())
        assert "It asks on a terminal; without one it goes ahead." in said


def test_what_names_no_app_and_no_file_is_told_with_the_whole_command(ghapp: Ghapp, tmp_path: Path) -> None:
    for command in (("app", "add"), ("setup",)):
        for number in ("abc", "0"):
            wrong = ghapp(*command, "--app-id", number)
            assert wrong.code == 2
            assert f"{number!r} is not the number that the app's page shows as App ID\n" in wrong.err
    key, target = tmp_path / "none.pem", f"file:{tmp_path}/kept.pem"
    missing = ghapp("app", "add", "--app-id", "7", "--key", key, "--signer", target)
    nowhere = ghapp("app", "add", "--app-id", "7", "--signer", f"file:{key}")
    write(tmp_path / "no key.pem", b"nonsense")
    nonsense = ghapp("app", "add", "--app-id", "7", "--key", tmp_path / "no key.pem", "--signer", target)

    again = f"ghapp app add --app-id 7 --key FILE --signer {target}"
    assert missing.err.endswith(f"(E36)\nghapp: hint: give the downloaded .pem: {again}\n")
    add = "ghapp app add --app-id 7 --signer"
    assert nowhere.err.endswith(f"(E36)\nghapp: hint: put the key there, or: {add} file:{key} --key FILE\n")
    assert "https://github.com/settings/apps, an organisation's: https://github.com/organizations/ORG/" in nonsense.err
