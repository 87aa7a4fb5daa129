"""git reaches a credential however ghapp was installed, and wherever git runs it."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import ROOT
from e2e.conftest import PERMISSIONS, Machine


PINS = ROOT / "install" / "constraints.txt"
INSTALL_LIMIT = 120.0  # seconds; pip takes 5 on an idle machine
BASE = str(Path(sys._base_executable).resolve())  # type: ignore[attr-defined]  # as venv itself uses it
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
# Modules that an interpreter, or something of ours, imports; each leaves a mark when it is run.
BAIT = ("json", "sitecustomize", "usercustomize", "os", "socket", "_socket", "stat", "httpx", "ghapp")


class Site:
    """A place to install from and to: the project's wheel, the wheels it needs, and no network."""

    def __init__(self, directory: Path, wheels: Path) -> None:
        self.directory = directory
        self.wheels = wheels
        self.home = directory / "home"
        self.home.mkdir()
        self.run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory), cwd=ROOT)
        (self.wheel,) = directory.glob("*.whl")

    def run(self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        done = subprocess.run(
            command,
            cwd=cwd or self.directory,
            env={
                "HOME": str(self.home),
                "PATH": SYSTEM_PATH,
                "LANG": "C.UTF-8",
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.wheels),
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_CACHE_DIR": str(self.directory / "cache"),
            }
            | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_LIMIT,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def venv(self, name: str) -> Path:
        directory = self.directory / name
        self.run(BASE, "-m", "venv", "--without-pip", directory)
        return directory / "bin"

    def pip(self, binaries: Path, *arguments: str | Path) -> None:
        """Install into a virtual environment with our own pip: one less to unpack for each."""
        self.run(sys.executable, "-m", "pip", "--python", binaries / "python", "install", *arguments)


def into_venv(site: Site) -> Path:
    binaries = site.venv("venv")
    site.pip(binaries, site.wheel)
    return binaries


def into_venv_with_spaces_far_down(site: Site) -> Path:
    """Deeper than a "#!" line may be long, too: pip writes a script for sh then."""
    binaries = site.venv("/".join(["a directory  with a long name"] * 5))
    site.pip(binaries, site.wheel)
    return binaries


def editable(site: Site) -> Path:
    binaries = site.venv("editable")
    site.pip(binaries, "hatchling", "editables")
    site.run(binaries / "python", "-c", "import hatchling, editables")
    site.pip(binaries, "--no-build-isolation", "--editable", ROOT)
    return binaries


def with_pipx(site: Site) -> Path:
    pytest.importorskip("pipx", reason="pipx is not installed")
    binaries = site.directory / "pipx-bin"
    options = ("--backend", "pip", "--skip-maintenance", "--python", BASE)
    env = {"PIPX_HOME": str(site.directory / "pipx"), "PIPX_BIN_DIR": str(binaries)}
    site.run(sys.executable, "-m", "pipx", "install", *options, site.wheel, env=env)
    return binaries


def with_uv_tool(site: Site) -> Path:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed")
    binaries = site.directory / "uv-bin"
    options = ("--no-config", "--offline", "--no-index", "--find-links", str(site.wheels), "--python", BASE)
    directories = {
        "UV_TOOL_DIR": str(site.directory / "uv tools"),
        "UV_TOOL_BIN_DIR": str(binaries),
        "UV_CACHE_DIR": str(site.directory / "uv-cache"),
    }
    site.run(uv, "tool", "install", *options, site.wheel, env=directories)
    return binaries


def for_the_user(site: Site) -> Path:
    """`pip install --user`: what lies in HOME/.local, and no virtual environment around it."""
    site.run(
        BASE,
        "-m",
        "pip",
        "install",
        "--user",
        "--no-warn-script-location",
        site.wheel,
        env={"PIP_BREAK_SYSTEM_PACKAGES": "1"},
    )
    return site.home / ".local" / "bin"


KINDS: tuple[Callable[[Site], Path], ...] = (
    into_venv,
    into_venv_with_spaces_far_down,
    with_pipx,
    with_uv_tool,
    for_the_user,
    editable,
)


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The wheels of all that the project needs; install/test.sh downloads them, and without it we do."""
    directory = ROOT / ".cache" / "wheels"
    made_of = hashlib.sha256(PINS.read_bytes()).hexdigest()
    stamp = directory / "made-of"
    if not stamp.exists() or stamp.read_text().strip() != made_of:
        shutil.rmtree(directory, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--require-hashes", "-r", str(PINS), "-d", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_LIMIT)
        if done.returncode != 0:
            pytest.skip(f"pip cannot download what {PINS.name} pins: {done.stderr.strip().splitlines()[-1:]}")
        stamp.write_text(made_of)
    return directory


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Site:
    return Site(tmp_path_factory.mktemp("installs"), wheels)


@pytest.fixture(scope="session", params=KINDS, ids=lambda kind: kind.__name__.replace("_", " "))
def binaries(request: pytest.FixtureRequest, site: Site) -> Path:
    """Where the two commands are after one kind of install."""
    install: Callable[[Site], Path] = request.param
    return install(site)


@pytest.fixture
def installed(binaries: Path, site: Site, machine: Machine) -> Machine:
    """A machine with that install on PATH and nothing of this checkout's, and one app; git is not set up."""
    machine.env["PATH"] = f"{binaries}:{SYSTEM_PATH}"
    if binaries.is_relative_to(site.home):  # the user's site directory goes with HOME
        (machine.home / ".local").mkdir()
        for name in ("bin", "lib"):
            (machine.home / ".local" / name).symlink_to(site.home / ".local" / name)
        machine.env["PATH"] = f"{machine.home}/.local/bin:{SYSTEM_PATH}"
    github = machine.github
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    machine.add_app(app)
    machine.ghapp("daemon", "stop")
    return machine


def use_absolute_path(machine: Machine) -> None:
    machine.ghapp("setup-git")
    machine.ghapp("daemon", "stop")


def use_bare_name(machine: Machine) -> None:
    machine.git("config", "--global", "credential.helper", "ghapp")
    machine.git("config", "--global", "credential.useHttpPath", "true")


@pytest.mark.parametrize("way", [use_absolute_path, use_bare_name], ids=["absolute path", "bare name"])
def test_git_gets_a_credential_cold_and_warm(installed: Machine, way: Callable[[Machine], None]) -> None:
    way(installed)

    cold = installed.fill()
    warm = installed.fill()

    assert cold["password"].startswith("ghs_")
    assert warm["password"] == cold["password"]


def lay_bait(directory: Path, mark: Path) -> None:
    directory.mkdir()
    for name in BAIT:
        (directory / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r} + chr(10))\n")
    package = directory / "ghapp"
    package.mkdir()
    for name in ("__init__", "client", "paths", "autostart", "daemon"):
        (package / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('ghapp.{name}' + chr(10))\n")


def test_a_hostile_repository_gets_nothing_run(installed: Machine) -> None:
    """Without a daemon, so that client.py and a new daemon run too, and with every PYTHONPATH that names it."""
    use_absolute_path(installed)
    hostile, mark = installed.work / "hostile", installed.work / "mark"
    lay_bait(hostile, mark)

    for path in (None, "", ":", "."):
        filled = installed.fill(cwd=hostile, env={} if path is None else {"PYTHONPATH": path})

        assert filled["password"].startswith("ghs_")
        assert not mark.exists(), f"PYTHONPATH={path}: {mark.read_text()}"
        installed.ghapp("daemon", "stop", "--keep-tokens")


@pytest.mark.parametrize(
    "arguments", [("-c", "import json"), ("-c", "import ghapp.client"), ("-S", "-c", "import socket")]
)
def test_the_bait_is_poisonous(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Without the front's care it is run: else the test above would prove nothing."""
    hostile, mark = tmp_path / "hostile", tmp_path / "mark"
    lay_bait(hostile, mark)

    subprocess.run([BASE, *arguments], cwd=hostile, env={}, capture_output=True, check=False, timeout=INSTALL_LIMIT)

    assert mark.exists()
