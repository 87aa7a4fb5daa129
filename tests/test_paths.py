"""Where the sockets are: the same in Python and in the front's sh."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ghapp import paths


CASES: list[dict[str, str]] = [
    {"GHAPP_RUNTIME_DIR": "{tmp}/given"},
    {"GHAPP_RUNTIME_DIR": "{tmp}/given", "XDG_RUNTIME_DIR": "{tmp}/run"},
    {"GHAPP_RUNTIME_DIR": "", "XDG_RUNTIME_DIR": "{tmp}/run"},
    {"XDG_RUNTIME_DIR": "{tmp}/run"},
    {"XDG_RUNTIME_DIR": "{tmp}/with space"},
    {"XDG_RUNTIME_DIR": "{tmp}/link"},
    {"XDG_RUNTIME_DIR": "relative", "HOME": "{tmp}/home"},
    {"XDG_RUNTIME_DIR": "", "HOME": "{tmp}/home"},
    {"XDG_RUNTIME_DIR": "{tmp}/missing", "HOME": "{tmp}/home"},
    {"XDG_RUNTIME_DIR": "{tmp}/file", "HOME": "{tmp}/home"},
    {"XDG_RUNTIME_DIR": "/proc/1/root/../..", "HOME": "{tmp}/home"},
    {"HOME": "{tmp}/home"},
    {"HOME": "{tmp}/home", "XDG_CACHE_HOME": "{tmp}/cache"},
    {"HOME": "{tmp}/home", "XDG_CACHE_HOME": "relative"},
    {"HOME": "{tmp}/home", "XDG_CACHE_HOME": ""},
    {},
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("run", "with space", "home", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "file").touch()
    if os.geteuid() == 0:
        os.chown(tmp_path / "others", 65534, 65534)
    return tmp_path


def front(environment: dict[str, str]) -> str:
    """Return the directory that the front computes, read from its trace."""
    done = subprocess.run(
        ["sh", "-x", str(ROOT / "install" / "git-credential-ghapp"), "erase"],
        env={"PATH": os.environ["PATH"]} | environment,
        input="protocol=https\n\n",
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"^\+ socket='?(.*?)/git\.sock'?$", done.stderr, re.MULTILINE)
    assert found is not None, done.stderr
    return found[1]


@pytest.mark.parametrize("case", [*CASES, {"XDG_RUNTIME_DIR": "{tmp}/others", "HOME": "{tmp}/home"}])
def test_the_front_and_python_agree(place: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, str]) -> None:
    environment = {name: value.format(tmp=place) for name, value in case.items()}
    for name in ("GHAPP_RUNTIME_DIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert paths.runtime_dir() == front(environment)


def test_both_sockets_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", "/run/x")

    assert paths.git_socket() == "/run/x/git.sock"
    assert paths.control_socket() == "/run/x/control.sock"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user")
def test_after_su_the_other_users_directory_is_not_ours(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHAPP_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "others"))

    assert not paths.runtime_dir().startswith(str(place / "others"))


def test_macos_keeps_caches_in_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", "/Users/me")

    assert paths._cache_dir() == "/Users/me/Library/Caches"
