"""Broken set-ups: `doctor` names each, and its hint, run as it is printed, mends it."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2e.conftest import BIN, Machine


GITHUB_URL = "https://github.com/acme"


@pytest.fixture(autouse=True)
def nothing_but_the_system(machine: Machine) -> None:
    """Leave cargo and what else a developer has out of the way; let hints hold paths that a shell would split."""
    machine.home = machine.home.rename(machine.home.with_name("hö me's"))
    machine.env["HOME"] = str(machine.home)
    machine.env["PATH"] = os.pathsep.join([str(BIN), "/usr/bin", "/bin"])


def diagnose(machine: Machine, *arguments: str, **options: object) -> dict[str, dict[str, str]]:
    done = machine.ghapp("doctor", "--json", *arguments, check=False, timeout=90, **options)
    assert done.returncode in {0, 1}, done.stderr
    found = json.loads(done.stdout)["checks"]
    assert (done.returncode == 1) == any(check["status"] == "fail" for check in found)
    return {check["name"]: check for check in found}


def git_config(machine: Machine) -> Path:
    return machine.home / ".gitconfig"


def config_dir(machine: Machine) -> Path:
    return machine.home / ".config/ghapp"


def append(machine: Machine, text: str) -> None:
    with git_config(machine).open("a") as file:
        file.write(text)


def helper_behind(helper: str, section: str = '[credential "https://github.com"]') -> Callable[[Machine], None]:
    return lambda machine: append(machine, f"{section}\n\thelper = {helper}\n")


def gh_set_up(machine: Machine) -> None:
    """Run `gh auth setup-git`; where there is no gh, write what it writes."""
    if shutil.which("gh", path=machine.env["PATH"]) is not None:
        hosts = machine.home / ".config/gh/hosts.yml"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text("github.com:\n    user: octocat\n    oauth_token: not-a-token\n    git_protocol: https\n")
        machine.run("gh", "auth", "setup-git")
        assert "gh auth git-credential" in git_config(machine).read_text()
        return
    append(machine, '[credential "https://github.com"]\n\thelper =\n\thelper = !/usr/bin/gh auth git-credential\n')


def local(*arguments: str) -> Callable[[Machine], None]:
    def breaks(machine: Machine) -> None:
        machine.git("init", "-q")
        machine.git(*arguments)

    return breaks


def without_our_file(machine: Machine) -> None:
    (config_dir(machine) / "gitconfig").unlink()


def our_file_broken(machine: Machine) -> None:
    (config_dir(machine) / "gitconfig").write_bytes(b"[credential\n\xff")


def without_our_include(machine: Machine) -> None:
    git_config(machine).write_text("")


def helper_gone(machine: Machine) -> None:
    ours = config_dir(machine) / "gitconfig"
    ours.write_text(re.sub(r"helper = /.*", "helper = /gone/git-credential-ghapp", ours.read_text()))


def without_path(machine: Machine) -> None:
    append(machine, f'[credential "{GITHUB_URL}"]\n\tuseHttpPath = false\n')


def directory_open(machine: Machine) -> None:
    machine.end()
    machine.sockets.chmod(0o755)


def config_open(machine: Machine) -> None:
    (config_dir(machine) / "config.toml").chmod(0o666)


def socket_open(machine: Machine) -> None:
    machine.ghapp("daemon", "start")
    (machine.sockets / "git.sock").chmod(0o666)


def key_open(machine: Machine) -> None:
    (machine.home / "acme-bot.pem").chmod(0o644)
    machine.ghapp("daemon", "restart")


def daemon_elsewhere(machine: Machine) -> None:
    machine.end()
    machine.ghapp("daemon", "start", env={"SSL_CERT_FILE": ""})


def proxy_gone(machine: Machine) -> None:
    machine.end()
    machine.ghapp("daemon", "start", env={"HTTPS_PROXY": "http://127.0.0.1:9"})


def runtime_is_a_file(machine: Machine) -> None:
    machine.end()
    shutil.rmtree(machine.sockets)
    machine.sockets.write_text("precious")


def ssh_remote(machine: Machine) -> None:
    machine.git("init", "-q")
    machine.git("remote", "add", "origin", "git@github.com:acme/rocket.git")


def token_remote(machine: Machine) -> None:
    machine.git("init", "-q")
    machine.git("remote", "add", "origin", "https://x:not-a-token@github.com/acme/rocket.git")


def ssh_instead(machine: Machine) -> None:
    machine.git("config", "--global", "url.git@github.com:.insteadOf", "https://github.com/")


def header(machine: Machine) -> None:
    """What an Actions checkout leaves."""
    machine.git("init", "-q")
    machine.git("config", "--local", "http.https://github.com/.extraheader", "AUTHORIZATION: basic eDp5")


def netrc(machine: Machine) -> None:
    (machine.home / ".netrc").write_text(
        "machine example.com login a password b\nmachine github.com\n  login c\n  password d\n"
    )


def cargo(machine: Machine) -> None:
    tools = machine.home / "tools"
    tools.mkdir()
    (tools / "cargo").write_text("#!/bin/sh\n")
    (tools / "cargo").chmod(0o755)
    machine.env["PATH"] = f"{tools}:{machine.env['PATH']}"


def another_username(machine: Machine) -> None:
    append(machine, f'[credential "{GITHUB_URL}"]\n\tusername = octocat\n')


def new_owner(machine: Machine) -> None:
    app = next(iter(machine.github.apps.values()))
    machine.github.install(app, "newcomer", repositories=["thing"])


def second_key_dead(machine: Machine) -> None:
    """The app has two keys, and GitHub knows only one of them."""
    app = next(iter(machine.github.apps.values()))
    fresh = app.add_key()
    path = machine.home / "fresh.pem"
    path.touch(mode=0o600)
    path.write_bytes(fresh)
    machine.ghapp("key", "add", path, "--signer", f"file:{machine.home / 'kept.pem'}")
    app.remove_key(fresh)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    breaks: Callable[[Machine], None]
    check: str
    says: str
    status: str = "fail"


ROWS = [
    Row("gh auth setup-git after us", gh_set_up, "helpers acme", "gh answers|asks gh"),
    Row("store behind us", helper_behind("store"), "helpers acme", "store is asked for acme after ghapp"),
    Row("a cache behind us", helper_behind("cache", "[credential]"), "helpers acme", "cache is asked"),
    Row("osxkeychain behind us", helper_behind("osxkeychain"), "helpers acme", "osxkeychain is asked"),
    Row("a manager behind us", helper_behind("/usr/bin/git-credential-manager"), "helpers acme", "manager is asked"),
    Row("store in the repository", local("config", "credential.helper", "store"), "helpers acme", "store is asked"),
    Row("a reset in the repository", local("config", "credential.helper", ""), "helpers acme", "nobody"),
    Row(
        "another in the repository for GitHub",
        local("config", "credential.https://github.com.helper", "store"),
        "helpers acme",
        "store is asked",
    ),
    Row("our file is gone", without_our_file, "helpers acme", "not ghapp"),
    Row("our file is broken", our_file_broken, "git-config", "bad config line 1"),
    Row("our include is gone", without_our_include, "helpers acme", "not ghapp"),
    Row("our helper's path is gone", helper_gone, "helpers acme", "/gone/git-credential-ghapp, which git would run"),
    Row("without useHttpPath", without_path, "helpers acme", "which repository"),
    Row("another username", another_username, "helpers acme", "octocat"),
    Row("an owner that setup-git did not know", new_owner, "helpers newcomer", "not ghapp"),
    Row("the runtime directory is open", directory_open, "runtime-directory", "open to others"),
    Row("the runtime directory is a file", runtime_is_a_file, "runtime-directory", "not a directory"),
    Row("the configuration is open", config_open, "config", "written by others"),
    Row("a socket is open", socket_open, "sockets", "mode 0666", "warn"),
    Row("the key's file is open", key_open, "key acme-bot", "can be read by others"),
    Row("the daemon was started without the CA", daemon_elsewhere, "network", "SSL_CERT_FILE"),
    Row("the daemon was started with another proxy", proxy_gone, "network", "proxy 127.0.0.1:9"),
    Row("an ssh remote", ssh_remote, "remote origin", "by ssh", "warn"),
    Row("a password in a remote", token_remote, "remote origin", "password"),
    Row("insteadOf leads to ssh", ssh_instead, "url acme", "git@github.com:"),
    Row("a header of a checkout action", header, "header acme", "extraheader"),
    Row("a netrc", netrc, "netrc", "asks no helper"),
    Row("cargo with its libgit2", cargo, "cargo", "libgit2", "warn"),
    Row("one of two keys is dead", second_key_dead, "key acme-bot file:", "another key", "warn"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_is_named_and_the_hint_mends_it(ready: Machine, row: Row) -> None:
    row.breaks(ready)

    found = diagnose(ready)
    broken = [check for name, check in found.items() if name.startswith(row.check) and check["status"] == row.status]
    assert broken, found
    assert re.search(row.says, broken[0]["message"]), broken
    mended = ready.run("sh", "-c", broken[0]["hint"], check=False)

    after = diagnose(ready)
    still = [
        check for name, check in after.items() if name.startswith(row.check) and check["status"] not in {"ok", "skip"}
    ]
    assert not still, (broken[0]["hint"], mended.stdout, mended.stderr, still)
    assert not [check for check in after.values() if check["status"] == "fail"]


def test_a_machine_that_is_set_up_is_well_and_git_itself_says_so(ready: Machine) -> None:
    found = diagnose(ready, "acme/rocket")

    assert {check["status"] for check in found.values()} <= {"ok", "skip"}
    assert found["repository acme/rocket"]["status"] == "ok"
    assert set(found["git"]) == {"name", "status", "message", "hint"}


def test_a_repository_that_cannot_be_read_is_told_with_the_reason(ready: Machine) -> None:
    ready.github.add_repository("acme/secret")

    check = diagnose(ready, "acme/secret")["repository acme/secret"]

    assert check["status"] == "fail"
    assert "E20" in check["message"]
    assert "https://github.com/" in check["hint"]


def test_git_asks_nobody_for_what_is_public_and_that_is_well(ready: Machine) -> None:
    for name in ("acme/open", "globex/press"):
        ready.github.add_repository(name, private=False, files={"README.md": "# Open\n"})

    ours = diagnose(ready, "acme/open")["repository acme/open"]
    foreign = diagnose(ready, "globex/press")["repository globex/press"]
    (ready.home / ".netrc").write_text("machine github.com login a password b\n")
    by_netrc = diagnose(ready, "acme/open")["repository acme/open"]

    assert (ours["status"], ours["hint"], foreign["status"], foreign["hint"]) == ("ok", "", "ok", "")
    assert "it is public" in ours["message"]
    assert "no app of yours is installed on globex" in foreign["message"]
    assert by_netrc["status"] != "ok"
    assert by_netrc["hint"].startswith("sed ")


@pytest.mark.parametrize(
    "command",
    [("doctor",), ("setup", "--yes", "--create"), ("setup-git",), ("setup-git", "--undo"), ("uninstall", "--yes")],
)
def test_in_a_directory_that_was_deleted_the_way_out_is_told_and_nothing_is_done(
    ready: Machine, command: tuple[str, ...]
) -> None:
    gone = ready.home / "gone"
    gone.mkdir()
    before = git_config(ready).read_text()

    done = ready.run("sh", "-c", 'cd "$0" && rmdir "$0" && exec ghapp "$@"', gone, *command, check=False)

    assert done.returncode == 1
    assert done.stderr == ("ghapp: error: the directory that this shell is in was deleted (E52)\nghapp: hint: cd\n")
    assert git_config(ready).read_text() == before
    assert (config_dir(ready) / "config.toml").exists()


def test_an_app_that_git_missed_a_moment_ago_is_found_by_git_once_doctor_has_looked(ready: Machine) -> None:
    app = next(iter(ready.github.apps.values()))
    ready.github.uninstall(next(iter(ready.github.installations.values())))
    assert ready.git("ls-remote", "https://github.com/acme/rocket", check=False).returncode != 0
    ready.github.install(app, "acme", repositories=["rocket"])

    assert diagnose(ready, "acme/rocket")["repository acme/rocket"]["status"] == "ok"


def test_a_configuration_that_git_cannot_read_is_named_with_its_file_and_its_editor(ready: Machine) -> None:
    append(ready, "[broken\n")
    ready.env["EDITOR"] = "sed -i /broken/d"

    refused = ready.ghapp("setup-git", check=False)
    found = diagnose(ready)

    assert refused.returncode == 1
    assert "is answered by ghapp" not in refused.stderr
    assert f"in file {git_config(ready)}" in refused.stderr
    assert found["git"]["status"] == "ok"
    assert found["git-config"]["status"] == "fail"
    assert f"ghapp: hint: {found['git-config']['hint']}\n" in refused.stderr
    ready.run("sh", "-c", found["git-config"]["hint"])
    assert diagnose(ready)["helpers acme"]["status"] == "ok"


def test_nothing_set_up_is_told_step_by_step(machine: Machine) -> None:
    assert diagnose(machine)["config"] == {
        "name": "config",
        "status": "fail",
        "message": "no app is registered",
        "hint": "ghapp setup",
    }


def test_fix_does_what_is_safe_and_looks_again(ready: Machine) -> None:
    gh_set_up(ready)
    token_remote(ready)
    done = ready.ghapp("doctor", "--fix", check=False)

    assert done.returncode == 1  # the remote is the person's
    assert "$ ghapp setup-git" in done.stderr
    assert "helpers acme: git asks ghapp alone for acme" in done.stdout
    assert "git remote set-url origin https://github.com/acme/rocket.git" in done.stdout
    assert ready.git("remote", "get-url", "origin").stdout.startswith("https://x:")


def test_fix_runs_this_ghapp_where_the_path_has_none(ready: Machine) -> None:
    without_our_include(ready)

    done = ready.run(BIN / "ghapp", "doctor", "--fix", env={"PATH": "/usr/bin:/bin"}, timeout=90)

    assert "$ ghapp setup-git" in done.stderr
    assert "helpers acme: git asks ghapp alone for acme" in done.stdout


def test_what_only_github_can_mend_has_its_page(ready: Machine) -> None:
    app = next(iter(ready.github.apps.values()))
    ready.github.suspend(next(iter(ready.github.installations.values())))

    found = diagnose(ready)

    assert found["installation acme"]["status"] == "fail"
    assert found["installation acme"]["hint"].startswith("unsuspend it: https://github.com/")
    assert app.slug in found["installation acme"]["message"]


FEATURES = ("--identity", "--rewrite-ssh", "--proactive", "--all")


@pytest.mark.slow
def test_what_was_chosen_stays_when_doctors_hints_are_run(ready: Machine) -> None:
    owned = config_dir(ready) / "gitconfig"
    for chosen in (options for count in range(5) for options in itertools.combinations(FEATURES, count)):
        ready.ghapp("setup-git", "--undo")
        ready.ghapp("setup-git", *chosen)
        once = owned.read_text()
        gh_set_up(ready)

        found = diagnose(ready)
        ready.run("sh", "-c", found["helpers acme"]["hint"])
        assert owned.read_text() == once, chosen
        assert diagnose(ready)["helpers acme"]["status"] == "ok"

        if "--all" not in chosen:
            ready.ghapp("setup-git", "--all")  # what it advises for cargo where there is no proxy
            lines = [line for line in once.splitlines() if not line.startswith("[credential ")]
            assert not set(lines) - set(owned.read_text().splitlines()), chosen
        git_config(ready).unlink()
