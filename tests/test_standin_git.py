"""Real git against the stand-in, and the matrix of statuses that git sees."""

import base64
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin import Lag, StandIn
from standin.client import Client, as_app, git
from standin.model import App, Installation, Repository


INVALID = "Invalid username or token. Password authentication is not supported for Git operations."
NOT_FOUND = "Repository not found."
NO_WRITE = "Write access to repository not granted."
ROCKET = "https://github.com/acme/rocket.git"


@pytest.fixture
def github(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn.start(tmp_path / "github") as github:
        yield github


@pytest.fixture
def app(github: StandIn) -> App:
    return github.add_app("acme-bot", {"contents": "write", "workflows": "write"})


@pytest.fixture
def rocket(github: StandIn) -> Repository:
    return github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})


@pytest.fixture
def installation(github: StandIn, app: App, rocket: Repository) -> Installation:
    return github.install(app, "acme", [rocket.name])


def mint(github: StandIn, installation: Installation, **asked: object) -> str:
    with as_app(github, installation.app) as client:
        answer = client.post(f"/app/installations/{installation.id}/access_tokens", json=asked)
    token: str = answer.json()["token"]
    return token


def with_token(token: str) -> dict[str, str]:
    value = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return {"http.extraHeader": f"Authorization: Basic {value}"}


def ask(github: StandIn, path: str, credential: str | None, service: str = "git-upload-pack") -> Any:
    authorization = credential and "Basic " + base64.b64encode(credential.encode()).decode()
    with Client(github, authorization, "https://github.com") as client:
        return client.get(f"/{path}/info/refs?service={service}")


def test_a_token_clones_and_pushes(github: StandIn, installation: Installation, tmp_path: Path) -> None:
    rocket = github.find_repository("acme", "rocket")
    assert rocket is not None
    token = mint(github, installation, repositories=["rocket"])
    url = f"https://anybody:{token}@github.com/acme/rocket.git"
    clone = tmp_path / "clone"

    assert git(github, "clone", url, str(clone)).returncode == 0
    assert (clone / "README.md").read_text() == "# Rocket\n"
    # More than http.postBuffer: sent in chunks, without a length.
    (clone / "large").write_bytes(os.urandom(2 << 20))
    git(github, "add", ".", cwd=clone)
    git(github, "commit", "-m", "Add something large", cwd=clone)
    pushed = git(github, "push", cwd=clone)

    assert pushed.returncode == 0, pushed.stderr
    assert git(github, "rev-parse", "HEAD", cwd=clone).stdout.strip() == rocket.revision()
    assert any(r.headers.get("transfer-encoding") == "chunked" for r in github.requests)
    assert {r.username for r in github.requests if r.scheme == "basic"} == {"anybody"}


def test_a_fetch_sees_what_others_pushed(
    github: StandIn, installation: Installation, rocket: Repository, tmp_path: Path
) -> None:
    config = with_token(mint(github, installation))
    git(github, "clone", ROCKET, str(tmp_path / "clone"), config=config)
    github.commit(rocket, {"new": "content"})

    git(github, "fetch", cwd=tmp_path / "clone", config=config)

    head = git(github, "rev-parse", "origin/main", cwd=tmp_path / "clone").stdout.strip()
    assert head == rocket.revision()


@pytest.mark.parametrize(
    ("credential", "path", "service", "status", "text"),
    [
        (None, "acme/rocket.git", "upload", 401, NOT_FOUND),
        (None, "acme/none", "upload", 401, NOT_FOUND),
        (None, "acme/open", "upload", 200, None),
        (None, "acme/open", "receive", 401, "No anonymous write access."),
        ("x:wrong", "acme/rocket", "upload", 401, INVALID),
        ("x:wrong", "acme/open", "upload", 401, INVALID),
        ("TOKEN:", "acme/rocket", "upload", 401, INVALID),
        ("anybody:TOKEN", "acme/rocket", "upload", 200, None),
        ("anybody:TOKEN", "ACME/Rocket.git", "receive", 200, None),
        ("x:TOKEN", "acme/fuel", "upload", 404, NOT_FOUND),
        ("x:TOKEN", "acme/none", "receive", 404, NOT_FOUND),
        ("x:TOKEN", "acme/open", "upload", 200, None),
        ("x:TOKEN", "acme/open", "receive", 403, "Permission to acme/open.git denied to acme-bot[bot]."),
        ("x:READ", "acme/rocket", "upload", 200, None),
        ("x:READ", "acme/rocket", "receive", 403, NO_WRITE),
        ("x:NONE", "acme/rocket", "upload", 403, NO_WRITE),
        ("x:TOKEN", "acme/rocket.wiki.git", "upload", 200, None),
        ("x:TOKEN", "acme/fuel.wiki.git", "upload", 404, NOT_FOUND),
    ],
)
def test_git_gets_githubs_status_and_text(  # noqa: PLR0917  # pytest names them
    github: StandIn,
    installation: Installation,
    rocket: Repository,
    credential: str | None,
    path: str,
    service: str,
    status: int,
    text: str | None,
) -> None:
    github.add_repository("acme/open", private=False)
    github.add_wiki(rocket)
    for name, permissions in (
        ("TOKEN", {}),
        ("READ", {"contents": "read"}),
        ("NONE", {"metadata": "read"}),
    ):
        if credential is not None and name in credential:
            credential = credential.replace(name, mint(github, installation, permissions=permissions))

    answer = ask(github, path, credential, f"git-{service}-pack")

    assert answer.status_code == status
    if text is not None:
        assert answer.text == text
    if status == 401:
        assert answer.headers["www-authenticate"] == 'Basic realm="GitHub"'


def test_what_ends_a_token_ends_it_for_git(github: StandIn, installation: Installation) -> None:
    revoked, late = mint(github, installation), mint(github, installation)
    github.revoke(revoked)
    assert ask(github, "acme/rocket", f"x:{revoked}").status_code == 401

    github.suspend(installation)
    assert ask(github, "acme/rocket", f"x:{late}").status_code == 403
    github.unsuspend(installation)
    github.settings.ip_allow_list.add("acme")
    assert "IP allow list" in ask(github, "acme/rocket", f"x:{late}").text
    github.settings.ip_allow_list.clear()
    github.clock.advance(3601)
    assert ask(github, "acme/rocket", f"x:{late}").status_code == 401


@pytest.mark.parametrize("status", [401, 403, 404])
def test_git_lags_apart_from_the_api(github: StandIn, installation: Installation, status: Any) -> None:
    github.settings.lag = Lag(requests=2, git_status=status)
    token = mint(github, installation)

    with Client(github, f"token {token}") as client:
        assert client.get("/installation/repositories").status_code == 200
    assert [ask(github, "acme/rocket", f"x:{token}").status_code for _ in range(3)] == [status, status, 200]


def test_old_names_go_on_working_until_they_are_taken(
    github: StandIn, installation: Installation, rocket: Repository
) -> None:
    token = mint(github, installation)
    github.rename(rocket, "acme/starship")

    for name in ("rocket", "starship"):
        assert git(github, "ls-remote", f"https://github.com/acme/{name}", config=with_token(token)).returncode == 0
    github.add_repository("acme/rocket")
    assert ask(github, "acme/rocket", f"x:{token}").status_code == 404


def test_a_workflow_is_refused_for_its_branch_alone(
    github: StandIn, installation: Installation, tmp_path: Path
) -> None:
    token = mint(github, installation, permissions={"contents": "write"})
    clone = tmp_path / "clone"
    git(github, "clone", ROCKET, str(clone), config=with_token(token))
    workflows = clone / ".github/workflows"
    workflows.mkdir(parents=True)
    (workflows / "x.yml").write_text("on: push\n")
    git(github, "add", ".", cwd=clone)
    git(github, "commit", "-m", "Add a workflow", cwd=clone)

    pushed = git(github, "push", "origin", "main", "main~1:refs/heads/other", cwd=clone, config=with_token(token))

    assert pushed.returncode == 1
    assert "[new branch]      main~1 -> other" in pushed.stderr
    assert (
        "! [remote rejected] main -> main (refusing to allow a GitHub App to create or update workflow "
        "`.github/workflows/x.yml` without `workflows` permission)"
    ) in pushed.stderr
    assert github.requests[-1].status == 200
    allowed = with_token(mint(github, installation))
    assert git(github, "push", "origin", "main", ":other", cwd=clone, config=allowed).returncode == 0


def test_every_post_can_be_refused(github: StandIn, installation: Installation) -> None:
    github.settings.reject_every_post = True
    token = mint(github, installation)

    cloned = git(github, "ls-remote", ROCKET, config=with_token(token))

    assert cloned.returncode == 128
    assert {(r.method, r.status) for r in github.requests if r.host == "github.com"} >= {
        ("GET", 200),
        ("POST", 401),
    }


def test_codeload_has_nothing(github: StandIn) -> None:
    with Client(github, base_url="https://codeload.github.com") as client:
        assert client.get("/acme/rocket/tar.gz/main").status_code == 404


def test_lfs_stores_and_gives_back(github: StandIn, installation: Installation) -> None:
    content = os.urandom(1000)
    item = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    token = mint(github, installation)
    batch = "https://github.com/acme/rocket.git/info/lfs/objects/batch"
    credential = base64.b64encode(f"x:{token}".encode()).decode()

    with Client(github) as stranger:
        refused = stranger.post(batch, json={"operation": "upload", "objects": [item]})
        assert (refused.status_code, refused.headers["lfs-authenticate"]) == (401, 'Basic realm="GitHub"')
    with Client(github, f"Basic {credential}") as client:
        offer = client.post(batch, json={"operation": "upload", "objects": [item]}).json()
        upload = offer["objects"][0]["actions"]["upload"]
        assert client.put(upload["href"], content=content).status_code == 403
        assert client.put(upload["href"], headers=upload["header"], content=b"other").status_code == 422
        assert client.put(upload["href"], headers=upload["header"], content=content).status_code == 200
        offer = client.post(batch, json={"operation": "download", "objects": [item]}).json()
        download = offer["objects"][0]["actions"]["download"]
        assert client.get(download["href"], headers=download["header"]).content == content


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")
def test_git_lfs_itself_pushes_and_clones(github: StandIn, installation: Installation, tmp_path: Path) -> None:
    token = mint(github, installation)
    url = f"https://x:{token}@github.com/acme/rocket.git"
    first, second = tmp_path / "first", tmp_path / "second"
    content = os.urandom(100_000)
    git(github, "clone", url, str(first))
    git(github, "lfs", "install", "--local", cwd=first)
    git(github, "lfs", "track", "*.bin", cwd=first)
    (first / "engine.bin").write_bytes(content)
    git(github, "add", ".", cwd=first)
    git(github, "commit", "-m", "Add the engine", cwd=first)

    pushed = git(github, "push", cwd=first)
    filters = {f"filter.lfs.{kind}": f"git-lfs {kind} -- %f" for kind in ("clean", "smudge")}
    git(github, "clone", url, str(second), config=filters)

    assert pushed.returncode == 0, pushed.stderr
    assert (second / "engine.bin").read_bytes() == content
