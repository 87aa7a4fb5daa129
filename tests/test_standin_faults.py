"""What the stand-in does wrong when it is told to, and how it is reached."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standin import StandIn
from standin.client import PATIENCE, Client, as_app, git


@pytest.fixture
def github(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn.start(tmp_path) as github:
        yield github


@pytest.fixture
def client(github: StandIn) -> Iterator[Client]:
    with as_app(github, github.add_app("acme-bot")) as client:
        yield client


def test_a_fault_is_used_up_and_noted(github: StandIn, client: Client) -> None:
    fault = github.faults.add(
        r"^/app$", method="GET", surface="api", status=502, body="<html>Bad gateway</html>", times=2
    )

    answers = [client.get("/app") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [502, 502, 200]
    assert answers[0].headers["content-type"] == "text/html"
    assert fault.hits == 2
    assert [request.faulty for request in github.requests] == [True, True, False]


def test_a_fault_lasts_until_it_is_cleared_and_spares_the_rest(github: StandIn, client: Client) -> None:
    github.faults.add("/app$", times=None, status=503, headers={"Retry-After": "7"})

    assert [client.get("/app").headers["retry-after"] for _ in range(3)] == ["7"] * 3
    assert client.get("/app/installations").status_code == 200
    github.faults.clear()
    assert client.get("/app").status_code == 200


@pytest.mark.parametrize(
    "fault",
    [
        {"cut": True},
        {"status": 200, "body": '{"id": 1', "content_length": 100},
    ],
)
def test_a_connection_can_end_too_early(github: StandIn, client: Client, fault: dict[str, Any]) -> None:
    github.faults.add("/app", **fault)

    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/app")

    assert client.get("/app").status_code == 200


@pytest.mark.parametrize(
    ("body", "kind"), [('{"id": 1', "application/json"), ("", "application/json"), ("{}", "text/html")]
)
def test_an_answer_can_be_nonsense(github: StandIn, client: Client, body: str, kind: str) -> None:
    github.faults.add("/app", status=200, body=body, headers={"Content-Type": kind})

    answer = client.get("/app")

    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, body, kind)


def test_an_answer_is_held_until_it_is_let_go(github: StandIn, client: Client) -> None:
    let_go = threading.Event()
    fault = github.faults.add("/app", hold=let_go)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(client.get("/app")))

    asking.start()
    assert fault.reached.wait(10)
    assert answers == []
    let_go.set()
    asking.join(10)

    assert answers[0].status_code == 200


def test_a_held_answer_does_not_keep_the_stand_in_alive(tmp_path: Path) -> None:
    with StandIn.start(tmp_path) as github:
        fault = github.faults.add(hold=threading.Event())
        asking = threading.Thread(target=lambda: git(github, "ls-remote", "https://github.com/acme/rocket"))
        asking.start()
        assert fault.reached.wait(10)
    asking.join(10)

    assert not asking.is_alive()


def test_a_real_answer_can_be_edited(github: StandIn, client: Client) -> None:
    github.faults.add("/app", edit=lambda body: body | {"slug": "someone-else"})

    assert client.get("/app").json()["slug"] == "someone-else"


def test_git_runs_into_a_fault_of_its_own(github: StandIn) -> None:
    github.faults.add(surface="git", status=429, headers={"retry-after": "1"}, times=None)

    result = git(github, "ls-remote", "https://github.com/acme/rocket")

    assert "429" in result.stderr


def test_the_proxy_leads_to_github_and_nowhere_else(github: StandIn) -> None:
    with Client(github) as client:
        client.get("https://github.com/acme/rocket")
        with pytest.raises(httpx.ProxyError, match="403"):
            client.get("https://example.com/")

    assert github.proxy.targets == {"github.com:443": 1}
    assert github.proxy.refused == {"example.com:443": 1}
    assert set(github.environment) == {"HTTPS_PROXY", "SSL_CERT_FILE"}


def test_the_proxy_can_ask_for_a_password(tmp_path: Path) -> None:
    with StandIn.start(tmp_path, proxy_credentials=("user", "word")) as github:
        with Client(github) as client:
            assert client.get("/versions").status_code == 200
        with (
            httpx.Client(proxy=f"http://127.0.0.1:{github.proxy_port}", trust_env=False, timeout=PATIENCE) as bare,
            pytest.raises(httpx.ProxyError, match="407"),
        ):
            bare.get("https://api.github.com/versions")


def test_only_certificates_are_written(github: StandIn) -> None:
    written = [path for path in github.directory.rglob("*") if path.is_file()]

    assert github.ca_file in written
    assert not [path for path in written if b"PRIVATE KEY" in path.read_bytes()]
