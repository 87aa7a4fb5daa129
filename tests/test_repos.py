"""`ghapp repos`: what the apps can reach."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import pytest
from command_line import Ghapp, add_name, register
from fakes_process import running
from standin.model import App
from standin.server import StandIn
from standin.settings import Lag

from ghapp import config, paths
from ghapp.cli import repos
from ghapp.cli.daemon_client import RemoteError, call
from ghapp.clock import SystemClock
from ghapp.github import YOUNG


PERMISSIONS = {"contents": "write", "issues": "write"}


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> App:
    app = github.add_app("acme-bot", PERMISSIONS)
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    register(app, tmp_path)
    return app


class LaterClock(SystemClock):
    """This machine's clocks, so many seconds later."""

    seconds = 0.0

    def wall(self) -> float:
        return super().wall() + self.seconds

    def boot(self) -> float:
        return super().boot() + self.seconds


@pytest.fixture
async def served(app: App) -> AsyncIterator[App]:
    async with running(Path(paths.runtime_dir())):
        yield app


async def test_every_repository_of_every_installation_is_listed_with_its_app_and_permissions(
    served: App, ghapp: Ghapp, github: StandIn
) -> None:
    github.install(served, "acme", repositories=["rocket"])
    github.install(served, "globex", permissions={"metadata": "read", "contents": "read"})
    github.add_repository("acme/rocket")
    github.add_repository("acme/not-selected")
    github.add_repository("globex/Press", private=False)

    table = await ghapp.asked("repos")
    found = (await ghapp.asked("repos", "--json")).json()
    one = (await ghapp.asked("repos", "GLOBEX", "--json")).json()

    assert [line.split() for line in table.out.splitlines()] == [
        ["REPOSITORY", "APP", "STATE", "PERMISSIONS"],
        ["acme/rocket", "acme-bot", "private", "write:", "contents,", "issues;", "read:", "metadata"],
        ["globex/Press", "acme-bot", "public", "read:", "contents,", "metadata"],
    ]
    assert table.err == ""
    assert found[1] == {
        "repository": "globex/Press",
        "private": False,
        "archived": False,
        "app": "acme-bot",
        "host": "github.com",
        "permissions": {"contents": "read", "metadata": "read"},
    }
    assert one == found[1:]


async def test_the_token_for_looking_can_only_look_and_is_used_again(
    served: App, ghapp: Ghapp, github: StandIn
) -> None:
    github.install(served, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")

    await ghapp.asked("repos")
    await ghapp.asked("repos")

    (mint,) = github.mints
    assert github.tokens[mint.token].permissions == {"metadata": "read"}
    (lease,) = (await ghapp.asked("leases", "--json")).json()
    assert (lease["repositories"], lease["permissions"]) == ("all", {"metadata": "read"})


async def test_a_list_of_many_pages_comes_whole_and_shows_on_a_terminal_how_far_it_is(
    served: App, ghapp: Ghapp, github: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    github.install(served, "acme")
    names = [f"acme/r{number:03}" for number in range(230)]
    for number, name in enumerate(names):
        add_name(github, name, 900_000 + number)

    found = await ghapp.asked("repos", "--json")

    assert [entry["repository"] for entry in found.json()] == names
    assert found.err == ""
    asked = [request.path for request in github.requests if request.path == "/installation/repositories"]
    assert len(asked) == 3

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen)
    await ghapp.asked("repos")
    assert "acme" in screen.getvalue()
    assert "100%" in screen.getvalue()


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_token_that_github_does_not_know_yet_is_waited_for(
    served: App, ghapp: Ghapp, github: StandIn, status: Literal[401, 403, 404]
) -> None:
    github.install(served, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    github.settings.lag = Lag(requests=1, rest_status=status)

    assert len((await ghapp.asked("repos", "--json")).json()) == 1


async def test_a_token_that_was_ended_elsewhere_is_not_used_a_second_time(
    app: App, ghapp: Ghapp, github: StandIn
) -> None:
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    clock = LaterClock()
    async with running(Path(paths.runtime_dir()), clock=clock):
        await ghapp.asked("repos")
        github.revoke(github.mints[0].token)
        clock.seconds = YOUNG  # no replica can be without the token any more
        refused = len(github.requests)

        failed = await ghapp.asked("repos", "--json")
        refusals = [request.status for request in list(github.requests)[refused:] if request.status == 401]
        again = await ghapp.asked("repos", "--json")

    assert refusals == [401]

    assert (failed.code, failed.out.strip()) == (1, "[]")
    assert "ghapp: warning: acme through acme-bot: GitHub refused (HTTP 401)" in failed.err
    assert len(again.json()) == 1


async def test_a_suspended_installation_is_named_and_hides_no_other(served: App, ghapp: Ghapp, github: StandIn) -> None:
    suspended = github.install(served, "acme", repositories=["rocket"])
    github.install(served, "globex")
    github.add_repository("globex/press")
    github.suspend(suspended)

    done = await ghapp.asked("repos", "--json")

    assert [entry["repository"] for entry in done.json()] == ["globex/press"]
    page = f"https://github.com/organizations/acme/settings/installations/{suspended.id}"
    assert done.err == (f"ghapp: warning: acme through acme-bot is suspended\nghapp: hint: unsuspend it at {page}\n")
    alone = await ghapp.asked("repos", "acme")
    assert (alone.code, alone.out, alone.err) == (0, "", done.err)


async def test_one_installation_that_cannot_be_asked_does_not_hide_the_others(
    served: App, ghapp: Ghapp, github: StandIn
) -> None:
    github.install(served, "acme")
    github.install(served, "globex")
    github.add_repository("globex/press")
    github.settings.ip_allow_list = {"acme"}

    done = await ghapp.asked("repos", "--json")

    assert done.code == 1
    assert '"globex/press"' in done.out
    assert "ghapp: warning: acme through acme-bot: GitHub refused (HTTP 403): Although you appear" in done.err


async def test_an_installation_that_was_suspended_meanwhile_is_not_waited_for(
    served: App, ghapp: Ghapp, github: StandIn
) -> None:
    installation = github.install(served, "acme")
    github.add_repository("acme/rocket")
    await ghapp.asked("repos")
    github.suspend(installation)

    with pytest.raises(RemoteError, match=r"\(E23\)"):
        await asyncio.to_thread(call, "repos", app="acme-bot", owner="acme")

    assert len([request for request in github.requests if request.path == "/installation/repositories"]) == 2


async def test_an_installation_of_a_moment_ago_is_found(served: App, ghapp: Ghapp, github: StandIn) -> None:
    github.install(served, "acme")
    assert "no repository is selected" in (await ghapp.asked("repos")).err
    github.install(served, "globex")
    github.add_repository("globex/press")

    assert [entry["repository"] for entry in (await ghapp.asked("repos", "--json")).json()] == ["globex/press"]


@pytest.mark.usefixtures("served")
async def test_where_there_is_nothing_it_says_why_and_what_to_do(ghapp: Ghapp) -> None:
    nowhere = await ghapp.asked("repos")
    other = await ghapp.asked("repos", "globex")

    assert (nowhere.code, nowhere.out) == (0, "")
    assert "no app of yours is installed anywhere\nghapp: hint: ghapp app show NAME" in nowhere.err
    assert other.code == 1
    assert "no app of yours is installed on globex (E24)\nghapp: hint: ghapp installations" in other.err

    config.remove_app(config.config_file(), "acme-bot")
    none = await ghapp.asked("repos", "--json")
    assert (none.code, none.out, none.err) == (
        0,
        "[]\n",
        "no app is registered\nghapp: hint: ghapp setup\n",
    )


def test_a_repository_of_another_host_is_named_with_it_and_an_archived_one_as_that() -> None:
    entry = {"host": "ghe.example.com", "repository": "a/b", "private": True, "archived": True}

    assert (repos._name(entry), repos._state(entry)) == ("ghe.example.com/a/b", "private, archived")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda body: body | {"repositories": None}, "GitHub's list of repositories is not a list"),
        (lambda body: body | {"total_count": "1"}, "GitHub's list of repositories is not a list"),
        (lambda body: body | {"repositories": [{"full_name": 7}]}, "GitHub's list of repositories is malformed"),
        (lambda body: body | {"repositories": ["acme/rocket"]}, "GitHub's list of repositories is malformed"),
    ],
)
async def test_a_malformed_list_is_refused(
    served: App, ghapp: Ghapp, github: StandIn, *, edit: Callable[[dict[str, object]], object], message: str
) -> None:
    github.install(served, "acme")
    github.add_repository("acme/rocket")
    github.faults.add("/installation/repositories", edit=edit)

    done = await ghapp.asked("repos")

    assert (done.code, done.out) == (1, "")
    assert f"ghapp: warning: acme through acme-bot: {message} (E28)\n" in done.err


async def test_an_answer_that_is_no_json_is_not_githubs(served: App, ghapp: Ghapp, github: StandIn) -> None:
    github.install(served, "acme")
    github.faults.add("/installation/repositories", status=200, body="<html>")

    assert "api.github.com answered 200 without usable JSON (E15)" in (await ghapp.asked("repos")).err


async def test_a_slug_that_cannot_be_one_is_never_part_of_a_url(served: App, github: StandIn) -> None:
    github.install(served, "acme")
    github.faults.add("/app$", edit=lambda body: body | {"slug": "a/../b"})

    with pytest.raises(RemoteError, match=r"without a usable slug \(E28\)"):
        await asyncio.to_thread(call, "bot", app="acme-bot", owner="acme")

    with pytest.raises(RemoteError, match=r"no app nobody is installed on acme \(E24\)"):
        await asyncio.to_thread(call, "bot", app="nobody", owner="acme")
