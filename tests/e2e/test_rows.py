"""Every row of "which token, and what if": its named outcome, with real git, the daemon and the stand-in."""

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import PERMISSIONS, Machine
from standin.model import App, Installation
from standin.server import StandIn
from standin.settings import Lag

from ghapp import process


API = "api.github.com"
ROCKET = "https://github.com/acme/rocket.git"
MINT = "/access_tokens$"
REQUEST = "protocol=https\nhost=github.com\npath={}.git\n\n"
AT_ONCE = 0.05  # seconds; what the daemon may take where it need not ask GitHub
ENOUGH = 5  # hellos; each gives the daemon's loop some turns, and a get that has all it needs takes no more
DEADLINE = 30.0


def api_calls(github: StandIn) -> list[str]:
    return [f"{request.method} {request.path}" for request in github.requests if request.host == API]


def connect(machine: Machine, repository: str = "acme/rocket", *, marker: str = "ghapp=1\n") -> socket.socket:
    """Ask git.sock as our client does, without waiting for the answer."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE)
    connection.connect(str(machine.sockets / "git.sock"))
    connection.sendall(f"action=get\ntimeout=0\n{marker}{REQUEST.format(repository)}".encode())
    connection.shutdown(socket.SHUT_WR)
    return connection


def answer(connection: socket.socket) -> dict[str, str]:
    with connection:
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return dict(line.split("=", 1) for line in text.splitlines())


def hello(machine: Machine) -> None:
    """Ask the daemon what needs nothing, and wait for the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(str(machine.sockets / "git.sock"))
        connection.sendall(b"action=hello\ntimeout=0\nghapp=1\n")
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection)["pid"]


def get_at_once(machine: Machine) -> tuple[dict[str, str], float]:
    """Return the answer to a get that must wait for nobody, and the seconds it took.

    Where this machine was too busy to give the daemon a turn in time, the daemon did not get to anything else either:
    a get that five hellos overtake, sent one after another, waits for something that they do not.
    """
    began = time.perf_counter()
    connection = connect(machine)
    overtaken = 0
    while not select.select([connection], [], [], 0 if overtaken else AT_ONCE)[0]:
        assert overtaken < ENOUGH, f"a get of {time.perf_counter() - began:.3f} s was overtaken by {overtaken} hellos"
        hello(machine)
        overtaken += 1
    return answer(connection), time.perf_counter() - began


def check_at_once(durations: list[float]) -> float:
    """Return the slowest; `get_at_once` judged each, and what slows hellos down as well shows in the most."""
    ordered = sorted(durations)
    assert ordered[len(ordered) * 9 // 10] <= AT_ONCE
    return ordered[-1]


def the(github: StandIn) -> tuple[App, Installation]:
    """Return the only app and its only installation."""
    (app,), (installation,) = github.apps.values(), github.installations.values()
    return app, installation


def goes_on(stderr: str) -> bool:
    """Tell whether git asked whoever came after us."""
    return "could not read Password" in stderr and "told us to quit" not in stderr


def written(machine: Machine) -> str:
    """Return all that the daemon wrote down."""
    state = machine.home / ".local/state/ghapp"
    files = [path for path in state.rglob("*") if path.is_file()]
    assert files
    return "".join(path.read_bytes().decode("latin-1") for path in files)


# -- which app, which installation ---------------------------------------------------------------------------------


def test_the_second_app_answers_where_the_first_is_not_installed(machine: Machine) -> None:
    github = machine.github
    first, second = github.add_app("first-bot", PERMISSIONS), github.add_app("second-bot", PERMISSIONS)
    github.install(first, "elsewhere")
    github.install(second, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    machine.add_app(first)
    machine.add_app(second)
    machine.ghapp("setup-git")

    machine.git("clone", ROCKET)

    assert [mint.app for mint in github.mints] == [second.id]


def test_the_right_one_of_130_installations_is_found_without_a_list(machine: Machine) -> None:
    github = machine.github
    app = github.add_app("acme-bot", PERMISSIONS)
    installations = [github.install(app, f"org{number}") for number in range(130)]
    github.add_repository("org117/rocket")
    machine.add_app(app)
    machine.ghapp("setup-git")
    machine.ghapp("daemon", "restart")
    github.journal.clear()

    machine.git("clone", "https://github.com/org117/rocket.git")

    assert [mint.installation for mint in github.mints] == [installations[117].id]
    assert len(api_calls(github)) == 2
    assert "GET /app/installations" not in api_calls(github)


def test_an_app_installed_anew_has_a_token_in_the_same_command(ready: Machine) -> None:
    github = ready.github
    _, installation = the(github)
    github.select(installation, github.add_repository("acme/engine"))
    ready.git("ls-remote", ROCKET)

    fresh = github.reinstall(installation)
    ready.git("clone", "https://github.com/acme/engine.git")

    assert github.mints[-1].installation == fresh.id != installation.id


def test_a_renamed_repository_is_cloned_by_its_old_url(ready: Machine) -> None:
    github = ready.github
    repository = github.named("acme", "rocket")
    assert repository is not None
    github.rename(repository, "acme/spaceship")

    ready.git("clone", ROCKET)

    (mint,) = github.mints
    assert mint.asked["repository_ids"] == [repository.id]
    assert "repositories" not in mint.asked


# -- no token can exist --------------------------------------------------------------------------------------------


def test_a_suspended_installation_is_named_and_git_goes_on(ready: Machine) -> None:
    ready.github.suspend(the(ready.github)[1])

    done = ready.git("ls-remote", ROCKET, check=False)

    assert "ghapp: error: the app's installation on acme is suspended (E23)" in done.stderr
    assert "ghapp: hint: unsuspend it at " in done.stderr
    assert goes_on(done.stderr)
    assert ready.github.mints == []


def test_a_repository_that_is_not_selected_is_named_and_git_goes_on(ready: Machine) -> None:
    ready.github.add_repository("acme/secret")

    done = ready.git("ls-remote", "https://github.com/acme/secret.git", check=False)

    assert "(E20)" in done.stderr
    assert "ghapp: hint: select the repository at " in done.stderr
    assert goes_on(done.stderr)
    assert ready.github.mints == []


def test_where_no_app_is_installed_there_is_silence_and_the_next_helper_is_asked(ready: Machine) -> None:
    asked = ready.work / "asked"
    ready.ghapp("setup-git", "--all")
    ready.git("config", "--global", "--add", "credential.https://github.com.helper", f"!cat >>{asked}; :")

    done = ready.git("ls-remote", "https://github.com/elsewhere/thing.git", check=False)

    assert "ghapp" not in done.stderr
    assert goes_on(done.stderr)
    assert "path=elsewhere/thing" in asked.read_text()


# -- what GitHub issues --------------------------------------------------------------------------------------------


Edit = Callable[[dict[str, Any]], dict[str, Any]]
WIDER: dict[str, Edit] = {
    "another permission": lambda body: body | {"permissions": body["permissions"] | {"issues": "write"}},
    "a higher level": lambda body: body | {"permissions": body["permissions"] | {"metadata": "write"}},
    "all repositories": lambda body: body | {"repository_selection": "all"},
    "another repository": lambda body: (
        body | {"repositories": [*body["repositories"], body["repositories"][0] | {"id": 1, "name": "other"}]}
    ),
}


@pytest.mark.parametrize("how", WIDER)
def test_a_token_wider_than_asked_for_is_refused_and_revoked(ready: Machine, how: str) -> None:
    github = ready.github
    github.settings.edit_mint = WIDER[how]

    done = ready.git("ls-remote", ROCKET, check=False)

    assert "ghapp: error: GitHub issued another token than was asked for" in done.stderr
    assert "was revoked (E28)" in done.stderr
    assert "told us to quit" in done.stderr
    assert github.mints
    assert all(github.tokens[mint.token].revoked for mint in github.mints)


@pytest.mark.parametrize(
    "text",
    ["ghs_{}\nquit=1", "ghs_{}\rx", "ghs_{}\0x", "ghs_{}" + "x" * 5 * 1024],
    ids=["LF", "CR", "NUL", "5 KiB"],
)
def test_a_token_that_git_could_misread_is_refused_and_printed_nowhere(ready: Machine, text: str) -> None:
    secret = os.urandom(20).hex()
    ready.github.settings.literal_tokens = [text.format(secret) for _ in range(6)]

    done = ready.git("ls-remote", ROCKET, check=False)
    filled = ready.run("git-credential-ghapp", "get", input=REQUEST.format("acme/rocket"))

    assert ready.github.mints
    assert "(E28)" in done.stderr
    assert "told us to quit" in done.stderr
    assert "password" not in filled.stdout
    for place in (done.stdout, done.stderr, filled.stdout, filled.stderr, written(ready)):
        assert secret not in place


@pytest.mark.parametrize(("form", "length"), [("stateless", 520), ("legacy", 40)])
def test_a_token_of_either_form_reaches_git_unchanged(ready: Machine, form: Any, length: int) -> None:
    ready.github.settings.token_format = form

    password = ready.fill()["password"]
    ready.git("clone", ROCKET)

    (mint,) = ready.github.mints
    assert password == mint.token
    assert abs(len(password) - length) <= 1
    if form == "stateless":
        assert all(character in password for character in "._-")


# -- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_that_is_hours_wrong_costs_one_call_and_expiry_is_in_the_local_clock(
    ready: Machine, hours: int
) -> None:
    github = ready.github
    ready.ghapp("daemon", "restart")
    github.clock.set_offset(hours * 3600)
    github.journal.clear()

    now = time.time()
    done = ready.run("git-credential-ghapp", "get", input=REQUEST.format("acme/rocket"))
    ready.git("clone", ROCKET)

    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["password"] == github.mints[0].token
    assert abs(int(found["password_expiry_utc"]) - (now + 3600)) < 15
    assert len(github.mints) == 1
    assert len(api_calls(github)) <= 3  # the look-up, the mint, and once more


# -- trouble that passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [Lag(requests=3, git_status=404), Lag(seconds=4, git_status=404)], ids=str)
def test_a_token_that_the_git_server_does_not_know_yet_is_waited_for(ready: Machine, lag: Lag) -> None:
    ready.github.settings.lag = lag

    done = ready.git("clone", ROCKET)

    assert "not found" not in done.stderr
    assert (ready.work / "rocket/README.md").exists()
    assert len(ready.github.mints) == 1


@pytest.mark.parametrize("path", ["/installation$", MINT], ids=["look-up", "mint"])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 502},
        {"status": 503},
        {"cut": True},
        {"status": 201, "headers": {"content-type": "application/json"}, "body": '{"token": "ghs_'},
        {"status": 201, "headers": {"content-type": "application/json"}, "body": '{"to', "content_length": 900},
    ],
    ids=["502", "503", "cut connection", "truncated JSON", "body shorter than announced"],
)
def test_what_passes_by_itself_is_not_seen_by_git(ready: Machine, fault: dict[str, Any], path: str) -> None:
    if "body" in fault and path != MINT:
        fault = fault | {"status": 200}
    ready.ghapp("daemon", "restart")
    scripted = ready.github.faults.add(path, surface="api", **fault)

    done = ready.git("clone", ROCKET)

    assert scripted.hits == 1
    assert "ghapp" not in done.stderr
    assert (ready.work / "rocket/README.md").exists()


# -- trouble that stays --------------------------------------------------------------------------------------------


def test_a_wrong_key_costs_one_call_over_five_commands(ready: Machine) -> None:
    github = ready.github
    app, installation = the(github)
    for number in range(5):
        github.select(installation, github.add_repository(f"acme/r{number}"))
    app.add_key()
    app.remove_key(app.private_key_pem)
    ready.ghapp("daemon", "restart")
    github.journal.clear()

    commands = [ready.git("ls-remote", f"https://github.com/acme/r{number}.git", check=False) for number in range(5)]

    assert len(api_calls(github)) == 1
    for done in commands:
        assert "(E22)" in done.stderr
        assert "ghapp: hint: compare the fingerprint" in done.stderr
        assert "told us to quit" in done.stderr


def test_when_github_says_to_wait_nothing_more_is_asked_and_a_living_lease_is_served(ready: Machine) -> None:
    github = ready.github
    _, installation = the(github)
    for name in ("engine", "fuel"):
        github.select(installation, github.add_repository(f"acme/{name}"))
    ready.git("ls-remote", ROCKET)
    github.faults.add(
        MINT,
        status=403,
        times=None,
        headers={"content-type": "application/json", "retry-after": "600"},
        body='{"message": "You have exceeded a secondary rate limit."}',
    )
    refused = ready.git("ls-remote", "https://github.com/acme/engine.git", check=False)
    github.journal.clear()

    commands = [
        ready.git("ls-remote", f"https://github.com/acme/{name}.git", check=False) for name in ("engine", "fuel")
    ]
    ready.git("clone", ROCKET)

    for done in (refused, *commands):
        assert "ghapp: error: GitHub limits this app's requests until " in done.stderr
        assert "(E26)" in done.stderr
        assert "told us to quit" in done.stderr
    assert api_calls(github) == []


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[Callable[[float], tuple[Machine, str]]]:
    """Give a function that makes a machine with a lease of that many seconds, and no network any more."""
    machines = []

    def leave(lifetime: float) -> tuple[Machine, str]:
        directory = tmp_path / "machine"
        directory.mkdir(mode=0o700)
        with StandIn.start(tmp_path / "github") as github:
            machine = Machine(directory, github)
            machines.append(machine)
            app = github.add_app("acme-bot", PERMISSIONS)
            github.install(app, "acme", repositories=["rocket"])
            github.add_repository("acme/rocket")
            machine.add_app(app)
            machine.ghapp("setup-git")
            github.settings.token_lifetime = lifetime
            return machine, machine.fill()["password"]

    yield leave
    for machine in machines:
        machine.end()


@pytest.mark.parametrize("lifetime", [3600, 400], ids=["", "near its end"])
def test_offline_a_living_lease_is_served_at_once(
    offline: Callable[[float], tuple[Machine, str]], lifetime: float, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, password = offline(lifetime)

    answers = [get_at_once(machine) for _ in range(50)]  # the first of them too
    filled = machine.fill()

    assert filled["password"] == password
    assert {found["password"] for found, _ in answers} == {password}
    slowest = check_at_once([seconds for _, seconds in answers])
    with capsys.disabled():
        print(f"\noffline: slowest of 50 gets {slowest * 1000:.1f} ms")  # noqa: T201  # asked for


def test_offline_a_lease_in_its_last_minutes_is_served_at_once_after_one_try(
    offline: Callable[[float], tuple[Machine, str]],
) -> None:
    machine, password = offline(200)

    first = machine.fill()
    answers = [get_at_once(machine) for _ in range(50)]

    assert first["password"] == password
    assert {found["password"] for found, _ in answers} == {password}
    check_at_once([seconds for _, seconds in answers])


# -- many at once --------------------------------------------------------------------------------------------------


def test_500_who_wait_for_a_mint_that_fails_cost_three_calls_and_each_hears_why(ready: Machine) -> None:
    github = ready.github
    github.faults.add(MINT, status=500, times=None)
    ready.ghapp("daemon", "start")

    waiting = [connect(ready) for _ in range(500)]
    answers = [answer(connection) for connection in waiting]
    answers.append(answer(connect(ready)))  # who comes just too late hears the same

    assert len(answers) == 501
    for found in answers:
        assert found["error"].endswith("(E27)")
        assert found["quit"] == "1"
        assert found["hint"]
        assert "password" not in found
    assert sum(call.endswith("access_tokens") for call in api_calls(github)) <= 3
    assert process.lock_holder(str(ready.sockets)) is not None


@pytest.mark.timeout(240)
def test_nobody_waits_while_a_token_is_renewed_ahead(ready: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 gets and more, one after another, from before the renewal is due until after it."""
    github = ready.github
    github.settings.token_lifetime = 602.0
    ready.ghapp("daemon", "start")
    first = answer(connect(ready))["password"]
    github.settings.token_lifetime = 3600.0
    renewal = github.faults.add(MINT, delay=3.0, times=None)

    passwords, while_minting, after = [first], 0, 0
    durations: list[float] = []
    end = time.monotonic() + DEADLINE
    while after < 300 or len(durations) < 1000:
        assert time.monotonic() < end, "the token was not renewed"
        found, seconds = get_at_once(ready)
        durations.append(seconds)
        if found["password"] != passwords[-1]:
            passwords.append(found["password"])
        while_minting += renewal.reached.is_set() and len(passwords) == 1
        after += len(passwords) > 1

    slowest = check_at_once(durations)
    assert passwords == [mint.token for mint in github.mints]
    assert len(passwords) == 2
    assert renewal.hits == 1
    assert while_minting >= 300
    with capsys.disabled():
        print(  # noqa: T201  # asked for
            f"\n{len(durations)} gets, {while_minting} of them during the renewal: slowest {slowest * 1000:.1f} ms"
        )
