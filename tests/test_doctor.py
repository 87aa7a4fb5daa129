"""`ghapp doctor` in this process: what each check says; whole set-ups are in e2e/test_doctor.py."""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Ghapp, register
from fakes_process import closed_port, running
from standin.model import App, Installation
from standin.server import StandIn

from ghapp import config, gitconfig, service
from ghapp.cli import doctor
from ghapp.cli.checks import FAIL, OK, SKIP, WARN, Check, Ground, git, github, here, local
from ghapp.cli.daemon_client import call
from ghapp.errors import NetworkFailed
from ghapp.routing import App as RoutedApp


PERMISSIONS = {"contents": "write", "workflows": "write", "metadata": "read"}


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> App:
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    register(app, tmp_path)
    return app


@pytest.fixture
async def served(directory: Path, app: App) -> AsyncIterator[App]:
    async with running(directory):
        yield app


async def looked(look: Callable[[Ground], Iterator[Check]], ground: Ground) -> list[Check]:
    return await asyncio.to_thread(lambda: list(look(ground)))


async def on_solid_ground() -> Ground:
    """Return the ground that the first checks leave to the later ones."""
    ground = here()
    await looked(local.check_configuration, ground)
    await looked(local.check_daemon, ground)
    return ground


def program(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "status", "message"),
    [
        ("git version 2.29.1", FAIL, "git 2.29.1 is older than 2.30"),
        ("git version 2.30.0", OK, "git 2.30.0; a token that GitHub rejects is replaced in the next command"),
        ("git version 2.46.0 (Apple Git-1)", OK, "git 2.46.0 (Apple Git-1)"),
        ("hello", WARN, "git does not tell its version: 'hello'"),
    ],
)
def test_gits_version_is_judged_by_what_it_lacks(tmp_path: Path, says: str, status: str, message: str) -> None:
    program(tmp_path, "git", f"echo '{says}'")

    (check,) = git.check_version(Ground({"PATH": str(tmp_path)}, tmp_path))

    assert (check.name, check.status) == ("git", status)
    assert check.message.startswith(message)


def test_a_machine_without_git_is_told_to_install_it(tmp_path: Path) -> None:
    ground = Ground({"PATH": str(tmp_path)}, tmp_path)

    (check,) = git.check_version(ground)
    (unreadable,) = git.check_helpers(ground)

    assert (check.status, unreadable.status) == (FAIL, FAIL)
    assert check.hint.startswith("install git")


def test_without_an_app_setup_comes_first() -> None:
    ground = here()
    (check,) = local.check_configuration(ground)

    assert check == Check("config", FAIL, "no app is registered", "ghapp setup")
    assert [found.status for found in github.check_apps(ground)] == [SKIP]
    assert [found.status for found in github.check_clock(ground)] == [SKIP]
    assert [found.status for found in local.check_proxy(ground)] == [SKIP]
    assert [found.status for found in git.check_repository(ground)] == [SKIP]
    assert [found.name for found in git.check_helpers(ground)] == ["git-config", "helpers"]


def test_a_configuration_that_cannot_be_used_is_named() -> None:
    path = config.config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[deamon]\n")

    (check,) = local.check_configuration(here())

    assert (check.status, check.safe) == (FAIL, False)
    assert "deamon" in check.message


def test_the_runtime_directory_is_judged(directory: Path) -> None:
    ground = here()
    assert [check.status for check in local.check_runtime_directory(ground)] == [OK]
    directory.mkdir(parents=True, mode=0o700)
    assert [check.status for check in local.check_runtime_directory(ground)] == [OK]

    directory.chmod(0o755)
    (check,) = local.check_runtime_directory(ground)
    assert (check.status, check.hint, check.safe) == (FAIL, f"chmod 700 {directory}", True)

    directory.rmdir()
    directory.write_text("precious")
    (check,) = local.check_runtime_directory(ground)
    assert (check.status, check.hint) == (FAIL, f"mv {directory} {directory}.aside")
    directory.unlink()


def test_a_runtime_directory_below_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", str(tmp_path / "file" / "run"))

    (check,) = local.check_runtime_directory(here())

    assert (check.status, check.message) == (FAIL, f"{tmp_path}/file/run: Not a directory")


def test_units_are_compared_with_what_would_be_written_now() -> None:
    def judged() -> Check:
        (check,) = local.check_service(here())
        return check

    assert judged().status == SKIP
    directory = service.unit_dir()
    directory.mkdir(parents=True)
    for name in service.UNITS:
        (directory / name).write_text(service.render(name, service.command()))
    assert judged().status == OK
    (directory / service.SERVICE).write_text(service.render(service.SERVICE, ["/gone/python"]))
    assert (judged().status, judged().hint) == (WARN, "ghapp daemon install")
    (directory / service.SERVICE).unlink()
    assert judged().message == "ghapp.service is missing"


async def test_a_daemon_that_answers_is_well(served: App, directory: Path) -> None:  # noqa: ARG001  # it serves
    ground = here()
    assert [(check.name, check.status) for check in await looked(local.check_daemon, ground)] == [
        ("daemon", OK),
        ("sockets", OK),
    ]

    (directory / "git.sock").chmod(0o666)
    open_to_all = (await looked(local.check_daemon, ground))[-1]
    assert (open_to_all.status, open_to_all.hint) == (WARN, f"chmod 600 {directory}/git.sock")


@pytest.mark.usefixtures("served")
async def test_a_daemon_of_a_version_that_was_replaced_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "site" / "ghapp-9.9.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: ghapp\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(described.parent))

    (found,) = await looked(local.check_daemon, here())

    assert found.message.endswith(" runs, and 9.9 is installed")
    assert (found.status, found.hint, found.safe) == (WARN, "ghapp daemon restart", True)


@pytest.mark.usefixtures("app")
def test_a_daemon_that_cannot_start_says_why(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text("in the way")

    (check,) = local.check_daemon(here())

    assert check.status == FAIL
    assert "E43" in check.message
    directory.unlink()


async def test_a_proxy_that_this_shell_does_not_have_is_told(
    served: App,  # noqa: ARG001  # it serves
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = await on_solid_ground()
    await looked(github.check_apps, ground)
    (fine,) = await looked(local.check_proxy, await on_solid_ground())
    assert fine.status == OK
    assert "(HTTPS_PROXY)" in fine.message

    ground = await on_solid_ground()
    other = Ground({**ground.env, "HTTPS_PROXY": "", "SSL_CERT_FILE": ""}, ground.cwd, status=ground.status)
    status = dict(ground.status or {})
    (check,) = local.check_proxy(other)
    assert (check.status, check.hint) == (WARN, "ghapp daemon restart")

    status["network"] = {"proxy": "", "proxy_origin": "", "ca": "", "ca_origin": ""}
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    (check,) = local.check_proxy(Ground(dict(os.environ), ground.cwd, status=status))
    assert check.status == WARN
    assert "HTTPS_PROXY" in check.message


async def test_keys_clock_limits_and_installations_are_asked_of_github(served: App, github: StandIn) -> None:
    ground = await on_solid_ground()
    found = {check.name: check for check in await looked(github_checks, ground)}
    assert {name: check.status for name, check in found.items()} == {
        "key acme-bot": OK,
        "installation acme": OK,
        "clock": OK,
        "rate-limit acme-bot": OK,
    }
    assert ground.owners == [("github.com", "acme")]

    github.clock.advance(7200)
    (clock,) = await looked(github_clock_asked_again, ground)
    assert clock.status == WARN
    assert re.match(r"this clock is (7199|7200|7201) s behind GitHub's; ", clock.message)  # Date has whole seconds

    served.remove_key(served.private_key_pem)
    (key, skipped) = await looked(github_apps, ground)
    assert (key.status, skipped.status) == (FAIL, SKIP)


def github_apps(ground: Ground) -> Iterator[Check]:
    yield from github.check_apps(ground)


def github_checks(ground: Ground) -> Iterator[Check]:
    yield from github.check_apps(ground)
    yield from github.check_clock(ground)


def github_clock_asked_again(ground: Ground) -> Iterator[Check]:
    list(github.check_apps(ground))
    yield from github.check_clock(ground)


@pytest.mark.parametrize(
    ("granted", "status", "says"),
    [
        ({"contents": "write", "metadata": "read"}, WARN, "asks for workflows: write, which acme has not accepted"),
        ({"metadata": "read"}, FAIL, "was not granted contents"),
    ],
)
async def test_what_an_installation_lacks_is_named(
    served: App, github: StandIn, granted: dict[str, str], status: str, says: str
) -> None:
    installation = next(iter(github.installations.values()))
    installation.permissions = granted
    assert served.slug == "acme-bot"

    found = await looked(github_checks, await on_solid_ground())

    (check,) = [check for check in found if check.name == "installation acme"]
    assert check.status == status
    assert says in check.message
    assert "https://github.com/" in check.hint


def configure(old: str, new: str) -> None:
    """Let a person edit the configuration."""
    path = config.config_file()
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def edited_by_its_hint(check: Check, script: str) -> None:
    """Run a hint that opens an editor, with one that does `script`; a daemon of the test's own stays."""
    command, _, restart = check.hint.partition(" && ")
    assert restart == "ghapp daemon restart"
    subprocess.run(["sh", "-c", command], env={**os.environ, "EDITOR": f"sed -i {script}"}, check=True)


@pytest.mark.parametrize(
    ("asks_for", "who", "editor"),
    [
        ({"issues": "write"}, "which acme has not accepted", ""),
        ({}, "which the app does not ask for", "/^permissions/d"),
    ],
)
async def test_permissions_in_the_configuration_that_were_not_granted_fail(
    served: App, asks_for: dict[str, str], who: str, editor: str
) -> None:
    configure("app_id", 'permissions = { contents = "write", issues = "write" }\napp_id')
    served.permissions |= asks_for
    await asyncio.to_thread(call, "reload")

    found = await looked(github_checks, await on_solid_ground())

    (check,) = [check for check in found if check.name == "installation acme"]
    assert check.status == FAIL
    assert "git gets no token" in check.message
    assert f"{config.config_file()} name issues: write, {who}" in check.message
    if not editor:
        assert re.fullmatch(r"accept it: https://github.com/organizations/acme/settings/installations/\d+", check.hint)
        return
    edited_by_its_hint(check, editor)
    found = await looked(github_checks, await on_solid_ground())
    assert [check.status for check in found if check.name == "installation acme"] == [OK]


async def test_owners_in_the_configuration_that_are_none_of_the_apps_are_told_beside_those_that_are(
    served: App,
) -> None:
    configure("app_id", 'owners = ["amce"]\napp_id')
    await asyncio.to_thread(call, "reload")

    found = await looked(github_checks, await on_solid_ground())

    (check,) = [check for check in found if check.name == f"installations {served.slug}"]
    assert check.status == FAIL
    assert check.message == f"{served.slug} is installed on acme, but its owners in {config.config_file()} are amce"
    edited_by_its_hint(check, "s/amce/acme/")
    found = await looked(github_checks, await on_solid_ground())
    assert [check.status for check in found if check.name == "installation acme"] == [OK]


async def test_an_app_that_may_only_read_is_told(served: App, github: StandIn) -> None:
    served.permissions = {"contents": "read", "metadata": "read"}
    next(iter(github.installations.values())).permissions = {"contents": "read", "metadata": "read"}

    found = await looked(github_checks, await on_solid_ground())

    assert [check.status for check in found if check.name == "installation acme"] == [WARN]


async def test_a_suspended_installation_and_one_that_is_nowhere_have_their_pages(served: App, github: StandIn) -> None:
    installation = next(iter(github.installations.values()))
    github.suspend(installation)
    found = await looked(github_checks, await on_solid_ground())
    assert [check.hint.partition(":")[0] for check in found if check.name == "installation acme"] == ["unsuspend it"]

    github.uninstall(installation)
    found = await looked(github_checks, await on_solid_ground())
    (check,) = [check for check in found if check.name == "installations acme-bot"]
    assert check.hint == f"install it: https://github.com/apps/{served.slug}/installations/new"


@pytest.mark.parametrize(("limit", "status"), [(30, WARN), (5000, OK)])
async def test_few_requests_left_are_told(served: App, github: StandIn, limit: int, status: str) -> None:
    github.settings.primary_limit = limit
    ground = await on_solid_ground()
    for _ in range(14):  # of two requests
        await looked(github_checks, ground)

    found = {check.name: check for check in await looked(github_checks, ground)}

    assert found[f"rate-limit {served.slug}"].status == status


def test_helpers_are_judged_in_gits_order(tmp_path: Path) -> None:
    ours = program(tmp_path, "git-credential-ghapp", "exit 0")
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1"}
    written = tmp_path / ".gitconfig"

    def judged(text: str) -> Check:
        written.write_text(text)
        ground = Ground(env, tmp_path, owners=[("github.com", "acme")])
        return next(check for check in git.check_helpers(ground) if check.name == "helpers acme")

    section = f'[credential "https://github.com/acme"]\n\thelper = {ours}\n\tuseHttpPath = true\n'
    assert judged(section).status == OK
    assert judged("").message == "git asks nobody for acme, not ghapp"
    assert judged("[credential]\n\thelper = store\n" + section).message == "store answers for acme before ghapp"
    behind = judged(section + "[credential]\n\thelper = store\n")
    assert behind.message == "store is asked for acme after ghapp, and gets its tokens to store"
    assert behind.hint == "ghapp setup-git"
    assert judged(section.replace("true", "off")).message == "git does not tell which repository of acme it wants"
    assert "octocat" in judged(section + "\tusername = octocat\n").message
    one = section + '[credential "https://github.com/acme/rocket.git"]\n\thelper = store\n'
    assert judged(one).status == OK
    checks = {check.name: check for check in git.check_helpers(Ground(env, tmp_path, owners=[("github.com", "acme")]))}
    assert checks["helpers acme/rocket.git"].status == FAIL
    assert checks["helpers acme/rocket.git"].hint == "ghapp setup-git"
    ours.chmod(stat.S_IRUSR)
    if os.geteuid() == 0:
        ours.unlink()
    assert "is not there" in judged(section).message


def test_what_goes_past_every_helper_is_found(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_ASKPASS": "/bin/true"}
    subprocess.run(["git", "init", "-q", tmp_path], env=env, check=True)
    (tmp_path / ".git" / "config").write_text(
        '[remote "ssh"]\n\turl = ssh://git@github.com/acme/rocket.git\n'
        '[remote "secret"]\n\turl = https://x:y@github.com/acme/rocket.git\n'
        '[remote "fine"]\n\turl = https://github.com/acme/rocket.git\n'
        '[url "https://x:y@github.com/acme/"]\n\tinsteadOf = https://github.com/acme/\n'
        '[http "https://github.com/"]\n\textraheader = AUTHORIZATION: basic eDp5\n'
    )
    (tmp_path / ".netrc").write_text("machine github.com login x password y\n")
    (tmp_path / "_netrc").mkdir()
    ground = Ground(env, tmp_path, owners=[("github.com", "acme")])
    ground.config = config.Config(apps=(an_app(),))

    found = {check.name: check for check in (*git.check_helpers(ground), *git.check_other_ways(ground))}

    assert found["remote ssh"].hint == "git remote set-url ssh https://github.com/acme/rocket.git"
    assert found["remote secret"].hint == "git remote set-url secret https://github.com/acme/rocket.git"
    assert "remote fine" not in found
    assert found["url acme"].hint == "git config --local --edit"
    assert "y@" not in found["url acme"].message
    header = "git config --local --unset-all http.https://github.com/.extraheader"
    assert found["header acme"].hint == f"{header} '^[Aa][Uu][Tt][Hh]'"
    assert found["netrc"].status == FAIL
    assert found["askpass"].status == OK


def at_home(directory: Path, *, more: str = "") -> Ground:
    """Return the ground in a repository in `directory`, which is HOME too, with git set up for acme."""
    helper = program(directory, "git-credential-ghapp", "exit 0")
    env = {"HOME": str(directory), "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", directory], env=env, check=True)
    (directory / ".gitconfig").write_text(gitconfig.render([("github.com", "acme")], helper) + more)
    return Ground(env, directory, owners=[("github.com", "acme")], config=config.Config(apps=(an_app(),)))


def run_hint(check: Check, ground: Ground) -> None:
    subprocess.run(["sh", "-c", check.hint], env=ground.env, cwd=ground.cwd, check=True)


def failing(ground: Ground) -> list[Check]:
    return [check for check in git.check_helpers(ground) if check.status in {WARN, FAIL}]


SSH = '[url "git@github.com:"]\n'
MIRROR = '[url "https://mirror.example/"]\n'


@pytest.mark.parametrize(
    ("text", "name", "says", "stays"),
    [
        (f"{SSH}\tpushInsteadOf = https://github.com/\n", "url acme", "pushInsteadOf", ""),
        (f"{MIRROR}\tinsteadOf = https://github.com/acme/\n", "url acme", "https://mirror.example/", ""),
        (
            f"{SSH}\tinsteadOf = gh:\n\tinsteadOf = https://github.com/\n",
            "url acme",
            "git@github.com:",
            "\tinsteadOf = gh:\n",
        ),
        (
            '[http "https://github.com/"]\n\textraHeader = X-Trace: 1\n\textraHeader = authorization: basic eDp5\n',
            "header acme",
            "credential of its own",
            "\textraHeader = X-Trace: 1\n",
        ),
    ],
    ids=["pushInsteadOf", "another https host", "insteadOf beside an innocent one", "header beside an innocent one"],
)
@pytest.mark.parametrize(
    "place",
    [".gitconfig", "sub dir/included", ".config/git/config", ".git/config", ".git/included"],
)
def test_a_detour_is_taken_out_of_the_file_it_stands_in_and_nothing_else_is(  # noqa: PLR0917  # pytest passes them by name
    tmp_path: Path, place: str, text: str, name: str, says: str, stays: str
) -> None:
    ground = at_home(tmp_path)
    (tmp_path / "below").mkdir()
    ground.cwd = tmp_path / "below"  # git tells a repository's files from its top on
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    including = {"sub dir/included": ".gitconfig", ".git/included": ".git/config"}
    if place in including:
        with (tmp_path / including[place]).open("a") as file:
            file.write(f'[include]\n\tpath = "{place.removeprefix(".git/")}"\n')
    with path.open("a") as file:
        file.write(text)

    (check,) = failing(ground)
    assert (check.name, check.status) == (name, FAIL)
    assert says in check.message
    run_hint(check, ground)

    assert failing(ground) == []
    assert path.read_text().endswith(stays)


@pytest.mark.parametrize(
    ("lines", "name", "status"),
    [
        ("url = https://github.com/acme/rocket\n\tpushurl = git@github.com:acme/rocket", "remote r (push)", WARN),
        ("url = git@github.com:acme/rocket", "remote r", WARN),
        ("url = org-123@github.com:acme/rocket", "remote r", WARN),
        ("url = git@GitHub.com:Acme/rocket", "remote r", WARN),
        ("url = github.com:acme/rocket", "remote r", WARN),
        ("url = ssh://git@github.com/acme/rocket", "remote r", WARN),
        ("url = ssh://git@ssh.github.com:443/acme/rocket", "remote r", WARN),
        ("url = http://x:s3cret@github.com/acme/rocket", "remote r", WARN),
        ("url = git://github.com/acme/rocket", "remote r", WARN),
        ("url = https://s3cret@github.com/acme/rocket", "remote r", FAIL),
        ("url = https://x:s3cret@github.com/acme/rocket", "remote r", FAIL),
        ("url = https://x-access-token@github.com/acme/rocket", "", OK),
        ("url = git@github.com:globex/press", "", OK),
        ("url = https://s3cret@github.com/globex/press", "", OK),
        ("url = git@example.com:acme/rocket", "", OK),
        ("url = ../acme/rocket", "", OK),
        ("url = /srv/github.com:acme/rocket", "", OK),
    ],
)
def test_remotes_that_go_past_us_are_found_for_our_owners_however_they_are_spelt(
    tmp_path: Path, lines: str, name: str, status: str
) -> None:
    ground = at_home(tmp_path)
    with (tmp_path / ".git/config").open("a") as file:
        file.write(f'[remote "r"]\n\t{lines}\n')

    found = failing(ground)

    assert [(check.name, check.status) for check in found] == ([(name, status)] if name else [])
    for check in found:
        assert "s3cret" not in check.message
        run_hint(check, ground)
        command = ["git", "remote", "get-url", "--push", "r"]
        done = subprocess.run(command, env=ground.env, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.lower() == "https://github.com/acme/rocket\n"
    assert failing(ground) == []


def test_ssh_remotes_that_setup_git_rewrites_are_well(tmp_path: Path) -> None:
    ground = at_home(tmp_path)
    urls = ("git@github.com:acme/rocket", "ssh://git@github.com/acme/rocket")
    with (tmp_path / ".git/config").open("a") as file:
        file.writelines(f'[remote "r{number}"]\n\turl = {url}\n' for number, url in enumerate(urls))
    assert [check.name for check in failing(ground)] == ["remote r0", "remote r1"]

    helper = tmp_path / "git-credential-ghapp"
    (tmp_path / ".gitconfig").write_text(gitconfig.render([("github.com", "acme")], helper, rewrite_ssh=True))

    assert failing(ground) == []


@pytest.mark.parametrize(
    ("text", "status", "after"),
    [
        ("machine github.com login a password b\n", FAIL, "machine github.com.not-used login a password b\n"),
        (
            "# machine github.com\nmachine GitHub.com\n\tlogin a\nmachine github.com login b\n",
            FAIL,
            "# machine github.com\nmachine GitHub.com.not-used\n\tlogin a\nmachine github.com.not-used login b\n",
        ),
        (
            "machine x.org login a\n  default login b\n",
            WARN,
            "machine x.org login a\n  machine default.not-used login b\n",
        ),
        ("machine\n  github.com login a password b\n", FAIL, ""),
        ("MACHINE github.com login a password b\n", FAIL, ""),
        ("machine x.org login a default login b\n", WARN, ""),
        ("# machine github.com login a password b\n#default login b\n", OK, ""),
        ("machine x.org login github.com # machine github.com\n", OK, ""),
        ("machine githubxcom login a\nmachine api.github.com login b\n", OK, ""),
    ],
)
def test_a_netrc_is_read_as_curl_does_and_mended_where_it_lies(
    tmp_path: Path, text: str, status: str, after: str
) -> None:
    kept = tmp_path / "dot files"
    kept.mkdir()
    (kept / "netrc").write_text(text)
    (tmp_path / ".netrc").symlink_to(kept / "netrc")
    ground = at_home(tmp_path)

    found = list(git.check_other_ways(ground))

    assert [check.status for check in found] == ([] if status == OK else [status])
    if found and not after:
        name = "github.com" if status == FAIL else "default"
        assert re.fullmatch(rf"in {kept}/netrc, write \S.*\.not-used instead of {name}", found[0].hint)
    elif found:
        run_hint(found[0], ground)
        assert (tmp_path / ".netrc").is_symlink()
        assert (kept / "netrc").read_text() == after
        assert list(git.check_other_ways(ground)) == []


async def test_an_app_without_a_key_fails_and_a_lost_key_is_replaced_for_that_app(served: App) -> None:
    path = config.config_file()
    (reference,) = config.load(path).apps[0].keys
    Path(reference.removeprefix("file:")).unlink()
    (gone, _) = await looked(github_apps, await on_solid_ground())
    path.write_text(re.sub(r"keys = \[.*\]", "keys = []", path.read_text()))
    await asyncio.to_thread(call, "reload")

    (none, skipped) = await looked(github_apps, await on_solid_ground())

    assert gone.status == FAIL
    assert re.search(rf"--app {served.slug}\b", gone.hint)
    wanted = Check(f"key {served.slug}", FAIL, f"{served.slug} has no key", f"ghapp key add FILE --app {served.slug}")
    assert none == wanted
    assert skipped.status == SKIP


def test_a_file_where_the_logs_are_to_be_is_moved_out_of_the_way() -> None:
    directory = config.state_dir()
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text("precious")
    ground = here()

    (check,) = local.check_state(ground)
    run_hint(check, ground)

    assert (check.status, check.message) == (WARN, f"{directory} is not a directory: nothing is logged")
    assert (directory.parent / f"{directory.name}.aside").read_text() == "precious"
    assert [found.status for found in local.check_state(ground)] == [OK]


def test_a_directory_where_the_trail_is_to_be_is_told_and_moved_out_of_the_way(ghapp: Ghapp) -> None:
    trail = config.state_dir() / "audit.jsonl"
    trail.mkdir(parents=True)
    other = config.state_dir() / "audit-grant-rocket.jsonl"
    other.write_text('{"time":"2026-11-21T14:00:00.000Z","action":"mint","outcome":"ok"}\n')
    ground = here()

    shown = ghapp("log")
    (check,) = local.check_state(ground)

    assert (shown.code, len(shown.out.splitlines())) == (1, 1)
    aside = f"mv {trail} {trail}.aside"
    assert shown.err == f"ghapp: warning: {trail} is not a file: nothing is recorded there\nghapp: hint: {aside}\n"
    assert (check.status, check.hint) == (WARN, aside)
    run_hint(check, ground)
    assert [found.status for found in local.check_state(ground)] == [OK]
    assert ghapp("log").code == 0


def an_app() -> RoutedApp:
    return RoutedApp("bot", "github.com", "https://api.github.com", "1", ("file:/k",), app_id=1)


def test_what_stands_in_the_environment_is_taken_out_there(tmp_path: Path) -> None:
    env = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "credential.helper",
        "GIT_CONFIG_VALUE_0": "store",
    }
    ground = Ground(env, tmp_path, owners=[("github.com", "acme")])

    (check,) = [check for check in git.check_helpers(ground) if check.name == "helpers acme"]

    assert check.hint == "unset GIT_CONFIG_COUNT GIT_CONFIG_PARAMETERS"


def test_cargo_is_looked_at_where_it_is(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    env = {"HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}", "GIT_CONFIG_NOSYSTEM": "1"}
    ground = Ground(env, tmp_path, config=config.Config(apps=(an_app(),)))
    nowhere = Ground({"PATH": str(tools)}, tmp_path)
    assert list(git.check_cargo(nowhere)) == []
    program(tools, "cargo", "exit 0")
    assert list(git.check_cargo(nowhere)) == []  # without git there is nothing to say

    assert [check.status for check in git.check_cargo(ground)] == [WARN]
    (tmp_path / ".cargo").mkdir()
    (tmp_path / ".cargo/config.toml").write_text("[net]\ngit-fetch-with-cli = true\n")
    assert [check.message for check in git.check_cargo(ground)] == ["fetches with git itself"]
    (tmp_path / ".cargo/config.toml").write_text("[net]\n")
    (tmp_path / ".gitconfig").write_text('[credential "https://github.com"]\n\thelper = /x/git-credential-ghapp\n')
    assert [check.status for check in git.check_cargo(ground)] == [OK]


@pytest.mark.parametrize(
    ("env", "gitconfig_of_host", "cargo_config", "reason"),
    [
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "", "", "HTTPS_PROXY"),
        ({"http_proxy": ""}, "", "", "http_proxy"),
        ({"CARGO_HTTP_CAINFO": "/ca.pem"}, "", "", "CARGO_HTTP_CAINFO"),
        ({}, "[http]\n\tproxy = http://127.0.0.1:9\n", "", "git's http.proxy"),
        ({}, "", '[http]\ncainfo = "/ca.pem"\n', "[http] in "),
        ({}, "", "http.timeout = 9\n", "[http] in "),
        ({}, '[http "https://example.com"]\n\tproxy = http://127.0.0.1:9\n', "", None),
        ({"HTTPS_PROXY": ""}, "", "net.git-fetch-with-cli = true\n", None),
    ],
)
def test_cargo_with_a_transport_of_its_own_logs_in_nowhere(
    tmp_path: Path, env: dict[str, str], gitconfig_of_host: str, cargo_config: str, reason: str | None
) -> None:
    program(tmp_path, "cargo", "exit 0")
    (tmp_path / ".gitconfig").write_text(
        f'{gitconfig_of_host}[credential "https://github.com"]\n\thelper = /x/git-credential-ghapp\n'
    )
    (tmp_path / ".cargo").mkdir()
    (tmp_path / ".cargo/config.toml").write_text(cargo_config)
    env |= {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "GIT_CONFIG_NOSYSTEM": "1"}
    ground = Ground(env, tmp_path, config=config.Config(apps=(an_app(),)))

    (check,) = git.check_cargo(ground)

    if reason is None:
        assert check.status == OK
        return
    assert check.status == WARN
    assert check.message.startswith(f"with {reason}")
    subprocess.run(["sh", "-c", check.hint], check=True)
    assert [check.message for check in git.check_cargo(ground)] == ["fetches with git itself"]
    assert tomllib.loads((tmp_path / ".cargo/config.toml").read_text())["net"] == {"git-fetch-with-cli": True}


def test_cargos_configuration_is_not_made_unreadable_by_a_second_table(tmp_path: Path) -> None:
    program(tmp_path, "cargo", "exit 0")
    (tmp_path / "config").write_text("[net]\nretry = 3\n")
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "CARGO_HOME": str(tmp_path)}
    ground = Ground(env | {"HTTPS_PROXY": "x"}, tmp_path, config=config.Config(apps=(an_app(),)))

    (check,) = git.check_cargo(ground)

    assert check.hint == f"write below [net] in {tmp_path}/config: git-fetch-with-cli = true"


async def test_a_repository_is_listed_by_git_itself(
    served: App,  # noqa: ARG001  # it serves
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ground = await on_solid_ground()
    ground.repository = ("github.com", "acme/rocket")
    program(tmp_path, "git", "echo 'ghapp: error: no (E20)' >&2; echo 'ghapp: hint: select it' >&2; exit 128")
    ground.env = {"PATH": str(tmp_path)}
    (check,) = await looked(git.check_repository, ground)
    assert (check.status, check.message, check.hint) == (FAIL, "git ls-remote: no (E20)", "select it")

    program(tmp_path, "git", "exit 3")
    (check,) = await looked(git.check_repository, ground)
    assert check.message == "git ls-remote: exit 3"

    assert (check.hint, check.safe) == ("ghapp setup-git", True)

    program(tmp_path, "git", "exit 0")
    (check,) = await looked(git.check_repository, ground)
    assert (check.status, check.hint) == (OK, "")
    assert check.message == "git reads it without ghapp: no app of yours is installed on acme"
    ground.owners = [("github.com", "Acme")]
    (check,) = await looked(git.check_repository, ground)
    assert (check.status, check.hint) == (WARN, "ghapp setup-git")
    assert check.message == "git reads it without asking ghapp: git asks nobody for acme, not ghapp"
    real = shutil.which("git")
    ground.env = {**at_home(tmp_path).env, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    program(tmp_path, "git", f'[ "$1" = ls-remote ] || exec {real} "$@"')
    (check,) = await looked(git.check_repository, ground)
    assert (check.status, check.hint) == (OK, "")
    assert "it is public" in check.message
    ground.env = {"PATH": str(tmp_path)}

    (tmp_path / "git").unlink()
    (check,) = await looked(git.check_repository, ground)
    assert check.status == FAIL

    program(tmp_path, "git", "exec sleep 30")
    monkeypatch.setattr(git, "LS_REMOTE_SECONDS", 0.2)
    ground.env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    (check,) = await looked(git.check_repository, ground)
    assert "did not end within" in check.message


NO_USERNAME = "fatal: could not read Username for 'https://github.com': terminal prompts disabled"
NOT_FOUND = "remote: Repository not found.\nfatal: repository 'https://github.com/acme/rocket/' not found"


def git_that_says(directory: Path, text: str, *, asks_for: str = "") -> None:
    """Put a git there that fails at `ls-remote` with `text`, and is git otherwise; it asks ghapp before."""
    real = shutil.which("git")
    ask = f"HOME={os.environ['HOME']} ghapp token {asks_for} >/dev/null" if asks_for else ":"
    (directory / "said").write_text(text + "\n")
    failing = f'if [ "$1" = ls-remote ]; then {ask}; cat {directory / "said"} >&2; exit 128; fi'
    program(directory, "git", f'{failing}\nexec {real} "$@"')


async def test_what_keeps_git_from_a_repository_is_told_with_what_mends_that(
    served: App, github: StandIn, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    installation = next(iter(github.installations.values()))

    async def judged(text: str, name: str = "acme/rocket", *, asks_for: str = "", config: str = "") -> Check:
        git_that_says(tools, text, asks_for=asks_for)
        (tmp_path / ".gitconfig").write_text(config)
        ground = await on_solid_ground()
        await looked(github_apps, ground)
        ground.repository = ("github.com", name)
        path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        ground.env = {**ground.env, "PATH": path, "HOME": str(tmp_path), "HTTPS_PROXY": "", "https_proxy": "http://p:1"}
        ground.cwd = tmp_path
        (check,) = await looked(git.check_repository, ground)
        assert check.status == FAIL
        return check

    elsewhere = await judged(NO_USERNAME, "globex/press")
    assert elsewhere.message == "git ls-remote: no app of yours is installed on globex (E24)"
    assert elsewhere.hint == f"install it: https://github.com/apps/{served.slug}/installations/new"

    unasked = await judged(NO_USERNAME)
    assert unasked.message == f"git ls-remote: git got no credential of ghapp's: {NO_USERNAME}"
    assert (unasked.hint, unasked.safe) == ("ghapp setup-git", True)

    sshed = await judged("Permission denied", config='[url "git@github.com:"]\n\tinsteadOf = https://github.com/\n')
    there = f"--file {tmp_path}/.gitconfig --unset-all"
    assert sshed.hint == f"git config {there} --fixed-value url.git@github.com:.insteadof https://github.com/"

    hidden = await judged(NOT_FOUND, asks_for="acme/rocket")
    assert "not found" in hidden.message
    assert hidden.hint == f"select the repository at {github_page(installation)}"

    words = "fatal: unable to access 'https://github.com/acme/rocket/': Could not resolve proxy: p"
    assert (await judged(words)).hint == "mend https_proxy in this shell"
    cut_off = await judged(words, config="[http]\n\tproxy = http://p:1\n")
    assert (cut_off.message, cut_off.hint) == (f"git ls-remote: {words}", f"git config {there} http.proxy")
    refused = words.replace("Could not resolve proxy: p", "The requested URL returned error: 403")
    assert (await judged(refused, asks_for="acme/rocket")).hint == hidden.hint

    served.remove_key(served.private_key_pem)
    dead = await judged(NO_USERNAME)
    assert "E22" in dead.message


def github_page(installation: Installation) -> str:
    return f"https://github.com/organizations/acme/settings/installations/{installation.id}"


async def test_a_network_that_is_down_is_one_failure_and_what_needs_it_is_skipped(
    ghapp: Ghapp,
    served: App,
    tmp_path: Path,
) -> None:
    config.add_key(config.config_file(), served.slug, f"file:{tmp_path / 'acme-bot.pem'}.new")
    register(served, tmp_path, name="same-host")
    port = closed_port()
    with config.config_file().open("a") as file:
        file.write(f'[network]\nproxy = "http://127.0.0.1:{port}"\n')
    await asyncio.to_thread(call, "reload")

    done = await ghapp.asked("doctor", "acme/rocket", "--json")

    found = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert done.code == 1
    assert {name: check["message"] for name, check in found.items() if check["status"] == "fail"} == {
        "network": f"cannot connect to the proxy 127.0.0.1:{port}, on the way to api.github.com (E16)"
    }
    assert found["network"]["hint"] == (
        f"mend proxy below [network] in {config.config_file()}, then: ghapp daemon restart"
    )
    for name in ("key {}", "installations {}", "rate-limit {}", "clock", "helpers", "repository acme/rocket"):
        for app in (served.slug, "same-host"):
            check = found[name.format(app)]
            assert (check["status"], check["message"]) == ("skip", "GitHub was not reached"), check


async def test_one_host_of_two_that_is_down_leaves_the_other_its_checks(
    ghapp: Ghapp,
    served: App,
    tmp_path: Path,
) -> None:
    register(served, tmp_path, name="ghe", host="ghe.invalid", api_url="https://ghe.invalid/api/v3")
    await asyncio.to_thread(call, "reload")

    done = await ghapp.asked("doctor", "--json")

    found = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert "ghe.invalid" in found["network"]["message"]
    assert (found["network"]["status"], found["key ghe"]["status"]) == ("fail", "skip")
    assert (found[f"key {served.slug}"]["status"], found["clock"]["status"]) == ("ok", "ok")


@pytest.mark.parametrize(
    "repository",
    [
        ("acme/rocket", "https://github.com/acme/rocket"),
        ("https://github.com/acme/rocket.git", "https://github.com/acme/rocket"),
        ("https://ghe.invalid/acme/rocket/", "https://ghe.invalid/acme/rocket"),
        ("initech/thing", "https://ghe.invalid/initech/thing"),
    ],
)
async def test_a_repository_is_tried_on_the_host_where_its_owner_has_an_app(
    ghapp: Ghapp,
    served: App,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: tuple[str, str],
) -> None:
    """The first app is of another host, and its owner is not on it."""
    config.config_file().unlink()
    register(served, tmp_path, name="ghe", host="ghe.invalid", api_url="https://ghe.invalid/api/v3")
    register(served, tmp_path)
    await asyncio.to_thread(call, "reload")
    tried: list[str] = []

    def look(ground: Ground) -> Iterator[Check]:
        tried.append("https://{}/{}".format(*(ground.repository or ("", ""))))
        yield Check("repository", OK, "")

    monkeypatch.setattr(doctor, "CHECKS", (*doctor.CHECKS[:-1], look))
    await ghapp.asked("doctor", repository[0])

    assert tried == [repository[1]]


@pytest.mark.parametrize(
    ("daemons", "here_", "says"),
    [
        ({"proxy": "p:1", "proxy_origin": "HTTPS_PROXY"}, {"HTTPS_PROXY": "http://u:x@p:1/"}, ""),
        ({"proxy": "p:1", "proxy_origin": "HTTPS_PROXY"}, {"HTTPS_PROXY": "p:1"}, ""),
        ({"proxy": "p:1", "proxy_origin": "HTTPS_PROXY"}, {"HTTPS_PROXY": "http://p:2"}, "HTTPS_PROXY is another"),
        ({"proxy": "p:1", "proxy_origin": "https_proxy"}, {}, "https_proxy is set where the daemon was started"),
        ({}, {"https_proxy": "http://p:1"}, "https_proxy is not set where"),
        ({"proxy": "p:1", "proxy_origin": "network.proxy"}, {"HTTPS_PROXY": "http://p:2"}, ""),
        ({"ca": "/a", "ca_origin": "SSL_CERT_FILE"}, {"SSL_CERT_FILE": "/b"}, "SSL_CERT_FILE is another"),
    ],
)
def test_a_failing_network_is_mended_by_a_restart_where_the_daemons_environment_is_old(
    daemons: dict[str, str], here_: dict[str, str], says: str
) -> None:
    nothing = {"proxy": "", "proxy_origin": "", "ca": "", "ca_origin": ""}
    ground = Ground(here_, Path("/"), status={"network": nothing | daemons})
    assert [check.status for check in local.check_proxy(ground)] == [WARN if says else OK]
    ground.unreached = {"a": NetworkFailed("down", hint="up"), "b": NetworkFailed("down", hint="up")}

    (check,) = local.check_proxy(ground)

    assert check.message.startswith(f"down (E11); {says}" if says else "down (E11)")
    assert (check.status, check.hint, check.safe) == (FAIL, "ghapp daemon restart" if says else "up", bool(says))


def test_a_host_that_was_left_to_others_is_passed_over(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools, "cargo", "exit 0")
    env = {"HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}", "GIT_CONFIG_NOSYSTEM": "1"}
    helper = tmp_path / "git-credential-ghapp"
    program(tmp_path, helper.name, "exit 0")
    text = gitconfig.render([], helper, all_owners_of=["github.com"], left_out=["ghe.example"])
    (tmp_path / ".gitconfig").write_text(text)
    ground = Ground(env, tmp_path, owners=[("github.com", "acme"), ("ghe.example", "globex")])
    ground.config = config.Config(apps=(an_app(), replace(an_app(), host="ghe.example")))

    found = {check.name: check for check in (*git.check_helpers(ground), *git.check_cargo(ground))}

    assert (found["helpers acme"].status, found["cargo"].status) == (OK, OK)
    assert found["helpers globex"] == Check("helpers globex", SKIP, "setup-git --host left ghe.example out")


async def test_the_command_lists_sums_up_and_fails(ghapp: Ghapp, served: App) -> None:
    done = await ghapp.asked("doctor", "acme/rocket")
    assert done.code == 1  # git was not set up
    assert "FAIL  helpers acme: git asks" in done.out
    assert "ghapp: hint: ghapp doctor --fix" in done.err

    served.remove_key(served.private_key_pem)
    machine = await ghapp.asked("doctor", "--json")
    assert machine.code == 1
    assert '"status": "fail"' in machine.out

    wrong = await ghapp.asked("doctor", "nonsense")
    assert wrong.code == 2


async def test_fixing_runs_what_is_safe_and_looks_again(
    ghapp: Ghapp,
    served: App,  # noqa: ARG001  # it serves
    directory: Path,
) -> None:
    (directory / "git.sock").chmod(0o666)

    done = await ghapp.asked("doctor", "--fix")

    assert f"$ chmod 600 {directory}/git.sock" in done.err
    assert "ok    sockets: " in done.out
    assert stat.S_IMODE((directory / "git.sock").stat().st_mode) == 0o600


@pytest.mark.usefixtures("directory")
def test_with_nothing_to_fix_the_checks_are_shown(ghapp: Ghapp) -> None:
    done = ghapp("doctor", "--fix")

    assert done.code == 1
    assert "FAIL  config: no app is registered\n      ghapp setup\n" in done.out
