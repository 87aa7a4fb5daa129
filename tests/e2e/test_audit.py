"""The audit trail of real git, read from the file and by `ghapp log`."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import Machine
from e2e.hunt import found_in, jwt_secrets, key_secrets, needles, token_secrets
from e2e.test_survival import fill_up, full_disk

from ghapp.lease import token_sha256


pytestmark = pytest.mark.e2e


def trail(machine: Machine) -> list[dict[str, Any]]:
    """Return the lines that are kept, as soon as the daemon has written them."""
    return [json.loads(line) for line in machine.ghapp("log", "--json").stdout.splitlines()]


def state(machine: Machine) -> Path:
    return machine.home / ".local/state/ghapp"


def test_the_lines_of_a_clone_name_git_its_program_its_directory_and_the_repository(ready: Machine) -> None:
    with subprocess.Popen(
        ["git", "clone", "-q", "https://github.com/acme/rocket.git"], cwd=ready.work, env=ready.env
    ) as git:
        assert git.wait(30) == 0

    lines = trail(ready)
    asked = [line for line in lines if line["peer"].get("command") == "git clone"]
    assert {line["action"] for line in asked} == {"mint", "answer"}
    for line in asked:
        assert (line["peer"]["pid"], line["peer"]["uid"]) == (git.pid, os.geteuid())
        assert line["peer"]["exe"] == str(Path(shutil.which("git", path=ready.env["PATH"]) or "").resolve())
        assert line["peer"]["cwd"] == str(ready.work)
        assert (line["repository"], line["outcome"], line["grant"]) == ("acme/rocket", "ok", None)
        assert line["token_sha256"] == token_sha256(ready.github.mints[-1].token)
        assert line["scope"]["repositories"] == ["rocket"]
    (mint,) = [line for line in asked if line["action"] == "mint"]
    pids = [each["pid"] for each in mint["peer"]["chain"]]
    assert pids.index(git.pid) == len(pids) - 2
    assert pids[-1] == os.getpid()


def test_only_the_first_hit_of_a_git_command_names_the_chain(ready: Machine) -> None:
    ready.fill()
    ready.fill()

    answers = [line for line in trail(ready) if line["action"] == "answer"]
    assert len({line["peer"]["pid"] for line in answers}) == 2
    assert [line["peer"]["command"] for line in answers] == ["git credential", "git credential"]
    assert all("chain" in line["peer"] for line in answers[-1:])


def test_a_refusal_a_revocation_and_what_locks_are_lines_too(ready: Machine) -> None:
    ready.git("ls-remote", "https://github.com/acme/other.git", check=False)
    ready.ghapp("token", "acme/another", check=False)
    ready.fill()
    ready.ghapp("revoke", "acme/rocket")
    ready.ghapp("lock")
    ready.ghapp("unlock")

    lines = trail(ready)
    assert {"mint", "answer", "refusal", "revocation", "lock", "unlock"} <= {line["action"] for line in lines}
    refusals = [line for line in lines if line["action"] == "refusal"]
    assert [(line["repository"], line["outcome"], line["peer"]["command"]) for line in refusals] == [
        ("acme/other", "E20", "git ls-remote"),
        ("acme/another", "E20", "ghapp token"),
    ]
    (locked,) = [line for line in lines if line["action"] == "lock"]
    assert locked["peer"]["command"] == "ghapp lock"
    said = ready.ghapp("log", "--repo", "acme/other").stdout
    assert "not on that repository (E20)" in said
    assert "by git ls-remote (pid" in said
    assert ready.ghapp("log", "--repo", "acme/none").stdout == ""
    assert stat.S_IMODE((state(ready) / "audit.jsonl").stat().st_mode) == 0o600


def test_no_secret_is_in_the_trail_not_even_one_of_a_directorys_name_or_a_command_line(ready: Machine) -> None:
    token = "ghs_" + "a1B2c3D4" * 5
    place = ready.work / token
    place.mkdir()
    ready.git("-c", f"http.extraHeader=X: {token}", "ls-remote", "https://github.com/acme/rocket.git", cwd=place)
    ready.ghapp("token", "acme/rocket")
    ready.ghapp("log", "--json")

    content = (state(ready) / "audit.jsonl").read_bytes()
    secrets = [*token_secrets(ready.github), *jwt_secrets(ready.github), token.encode()]
    for app in ready.github.apps.values():
        secrets += key_secrets(app.private_key_pem)
    assert b"[secret]" in content
    assert not found_in(content, needles(secrets))


def test_control_characters_of_a_directorys_name_reach_no_terminal(ready: Machine) -> None:
    place = ready.work / "a\x1b]0;owned\x07\n\x9b31m\u202eb"
    place.mkdir()
    ready.git("ls-remote", "https://github.com/acme/rocket.git", cwd=place)

    for form in ((), ("--json",)):
        said = ready.ghapp("log", *form).stdout
        assert all(character.isprintable() or character == "\n" for character in said)
    assert any(line["peer"]["cwd"] == str(place) for line in trail(ready))
    content = (state(ready) / "audit.jsonl").read_bytes()
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in content)


def test_log_follows_what_comes(ready: Machine) -> None:
    ready.fill()
    with subprocess.Popen(
        ["ghapp", "log", "-f", "--json"], env=ready.env, stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["action"] == "mint"
        assert json.loads(follower.stdout.readline())["action"] == "answer"
        (state(ready) / "audit.jsonl").rename(state(ready) / "audit.jsonl.1")
        ready.ghapp("lock")
        assert json.loads(follower.stdout.readline())["action"] == "lock"
        follower.terminate()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_a_disk_that_fills_up_stops_nobody_and_the_trail_tells_of_the_gap(ready: Machine, tmp_path: Path) -> None:
    with full_disk(tmp_path / "full") as full:
        (full / "filler").unlink()
        ready.env["XDG_STATE_HOME"] = str(full)
        ready.ghapp("daemon", "restart")
        ready.fill()
        fill_up(full)
        for _ in range(30):
            assert ready.fill()["password"]
        kept = [json.loads(line) for line in (full / "ghapp/audit.jsonl").read_bytes().splitlines()]
        (full / "filler").unlink()
        assert ready.fill()["password"]

        lines = trail(ready)
        assert lines[: len(kept)] == kept
        assert [line["action"] for line in lines[len(kept) :]] == ["gap", "answer"]
        lost = int(lines[len(kept)]["outcome"].split()[0])
        assert len(kept) + lost == 32
        assert (full / "ghapp/daemon.log").read_text().count("the audit trail cannot be written") <= 1
        ready.end()


def test_a_locked_daemon_answers_nothing_and_says_so(ready: Machine) -> None:
    assert ready.fill()["password"]
    ready.ghapp("lock", "--revoke")

    refused = ready.git("ls-remote", "https://github.com/acme/rocket.git", check=False)
    assert refused.returncode != 0
    assert "ghapp: error: ghapp is locked (E42)\nghapp: hint: ghapp unlock" in refused.stderr
    assert "Username" not in refused.stderr
    assert json.loads(ready.ghapp("status", "--json").stdout)["locked"] is True
    assert "locked" in ready.ghapp("status").stdout
    assert "E42" in ready.ghapp("token", "acme/rocket", check=False).stderr
    assert ready.github.live_token(ready.github.mints[0].token) is None

    ready.ghapp("unlock")
    ready.git("ls-remote", "https://github.com/acme/rocket.git")
