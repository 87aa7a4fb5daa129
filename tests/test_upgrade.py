"""Another version installed over the one that runs, as installers do it: step by step."""

import os
import shutil
from pathlib import Path

import pytest

from ghapp.upgrade import Installation


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "1.0")
    return tmp_path


def install(place: Path, version: str, *, whole: bool = True) -> Path:
    described = place / f"demo-{version}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: demo\nVersion: {version}\n")
    if whole:
        (described / "RECORD").write_text("demo.py,,\n")
    now = place.stat().st_mtime_ns + 10**9  # two steps of a quick test may fall into one tick of the file system
    os.utime(place, ns=(now, now))
    return described


def uninstall(place: Path, version: str) -> None:
    shutil.rmtree(place / f"demo-{version}.dist-info")
    now = place.stat().st_mtime_ns + 10**9
    os.utime(place, ns=(now, now))


def test_the_version_that_runs_has_no_successor(place: Path) -> None:
    running = Installation("demo")

    assert running.version == "1.0"
    assert running.successor() == ""
    (place / "another_package.py").touch()
    assert running.successor() == ""


def test_a_successor_is_seen_once_it_is_whole(place: Path) -> None:
    running = Installation("demo")

    uninstall(place, "1.0")
    assert running.successor() == ""
    (place / "demo-1.1.dist-info").mkdir()
    assert running.successor() == ""
    (place / "demo-1.1.dist-info").rmdir()
    described = install(place, "1.1", whole=False)
    assert running.successor() == ""
    (described / "RECORD").write_text("demo.py,,\n")

    assert running.successor() == "1.1"


def test_a_package_that_was_removed_or_installed_again_has_no_successor(place: Path) -> None:
    running = Installation("demo")

    uninstall(place, "1.0")
    assert running.successor() == ""
    install(place, "1.0")
    assert running.successor() == ""
    uninstall(place, "1.0")
    place.rmdir()

    assert running.successor() == ""
