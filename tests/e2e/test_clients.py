"""Programs that fetch by git, as they come from the registries: each through ghapp, none the wiser."""

import contextlib
import json
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from e2e.conftest import BIN, PERMISSIONS, Machine
from standin import bare
from standin.model import Repository
from standin.server import StandIn


URL = "https://github.com/acme/pkg.git"
SUBMODULES = 50
# rustup's cargo looks for its toolchains in the home of whoever runs the tests.
RUSTUP_HOME = os.environ.get("RUSTUP_HOME") or str(Path.home() / ".rustup")


def need(program: str, package: str) -> None:
    """Skip where a client is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; on Debian: apt install {package}")


def runs(machine: Machine, program: str) -> bool:
    """Tell whether a client is there and works: rustup's cargo without a toolchain does not."""
    if shutil.which(program, path=machine.env["PATH"]) is None:
        return False
    return any(machine.run(program, word, check=False).returncode == 0 for word in ("--version", "version"))


def equip(directory: Path, github: StandIn, *slugs: str) -> Machine:
    """Make a machine with these apps, and git set up."""
    directory.mkdir(mode=0o700)
    machine = Machine(directory, github)
    for app in github.apps.values():
        if app.slug in slugs:
            machine.add_app(app)
    machine.ghapp("setup-git")
    return machine


@pytest.fixture
def acme(tmp_path: Path, github: StandIn) -> Iterator[Machine]:
    """A machine with an app on all of acme.

    Afterwards nothing that was minted may be in a file, and nobody else may have been asked for anything.
    """
    github.install(github.add_app("acme-bot", PERMISSIONS), "acme")
    machine = equip(tmp_path / "machine", github, "acme-bot")
    try:
        yield machine
    finally:
        machine.end()
    assert holders(machine) == []
    assert not github.proxy.refused


def holders(machine: Machine) -> list[Path]:
    """Return the files that hold a token."""
    tokens = [mint.token.encode() for mint in machine.github.mints]
    files = (path for top in (machine.home, machine.work) for path in top.rglob("*") if path.is_file())
    return [path for path in files if any(token in path.read_bytes() for token in tokens)]


def package(machine: Machine, files: Mapping[str, str]) -> Repository:
    """Add acme/pkg, private, with these files."""
    return machine.github.add_repository("acme/pkg", files=files)


def project(machine: Machine, files: Mapping[str, str]) -> Path:
    """Write the project that depends on acme/pkg."""
    for name, text in files.items():
        path = machine.work / "user" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return machine.work / "user"


def minted(github: StandIn) -> list[tuple[str, ...] | None]:
    return [mint.repositories for mint in github.mints]


# -- git-lfs -----------------------------------------------------------------------------------------------------------


def test_git_lfs_pushes_and_another_machine_clones_and_pulls(acme: Machine, tmp_path: Path) -> None:
    """It asks for the remote's path; where the remote is elsewhere, for that of `lfs.url`."""
    need("git-lfs", "git-lfs")
    github = acme.github
    github.add_repository("acme/rocket")
    first, second = acme.work / "rocket", tmp_path / "second" / "work" / "rocket"
    contents = [os.urandom(100_000), os.urandom(100_000)]
    acme.git("lfs", "install")
    acme.git("clone", "https://github.com/acme/rocket.git")
    acme.git("lfs", "track", "*.bin", cwd=first)

    def push(content: bytes) -> None:
        (first / "engine.bin").write_bytes(content)
        acme.git("add", ".", cwd=first)
        acme.git("commit", "-m", "Change the engine", cwd=first)
        acme.git("push", cwd=first)

    push(contents[0])
    other = equip(tmp_path / "second", github, "acme-bot")
    try:
        other.git("lfs", "install")
        other.git("clone", "https://github.com/acme/rocket.git")
        assert (second / "engine.bin").read_bytes() == contents[0]
        push(contents[1])
        other.git("pull", cwd=second, env={"GIT_LFS_SKIP_SMUDGE": "1"})
        assert (second / "engine.bin").stat().st_size < 1000
        other.git("remote", "set-url", "origin", first, cwd=second)
        other.git("config", "lfs.url", "https://github.com/acme/rocket.git/info/lfs", cwd=second)
        other.git("lfs", "pull", cwd=second)
    finally:
        other.end()

    assert (second / "engine.bin").read_bytes() == contents[1]
    assert minted(github) == [("acme/rocket",)] * 2  # one a machine
    ours = {mint.token_sha256 for mint in github.mints}
    asked = [request for request in github.requests if "/info/lfs/" in request.path]
    assert [request.status for request in asked if request.token_sha256 in ours] == [
        200
    ] * 6  # a push asks for locks, too
    assert {request.status for request in asked if request.token_sha256 not in ours} == {401}
    assert holders(other) == []


# -- what fetches dependencies -----------------------------------------------------------------------------------------


PYTHON = {
    "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    '[project]\nname = "acme-pkg"\nversion = "0.1.0"\n',
    "acme_pkg/__init__.py": "ONE = 1\n",
}


@pytest.mark.parametrize("installer", [("python", "-m", "pip"), ("uv", "pip")], ids=["pip", "uv"])
def test_pip_and_uv_install_a_private_package(acme: Machine, installer: tuple[str, ...]) -> None:
    package(acme, PYTHON)
    program, *rest = installer
    options = ["--no-index", "--no-build-isolation", "--target", str(acme.work / "site")]
    options += ["--python", str(BIN / "python")] if program == "uv" else []

    acme.run(BIN / program, *rest, "install", *options, f"git+{URL}", env={"PIP_CONFIG_FILE": os.devnull}, timeout=50)

    assert (acme.work / "site/acme_pkg/__init__.py").read_text() == "ONE = 1\n"
    assert minted(acme.github) == [("acme/pkg",)]


def test_npm_installs_a_private_package_and_again_from_its_lock_file(acme: Machine) -> None:
    """Which names ssh, and which npm reads as https all the same."""
    need("npm", "npm")
    package(acme, {"package.json": '{"name": "pkg", "version": "0.1.0"}', "index.js": "module.exports = 1;\n"})
    user = project(acme, {"package.json": '{"name": "user", "version": "0.1.0"}'})
    settings = {"cafile": acme.env["SSL_CERT_FILE"], "audit": "false", "update_notifier": "false", "fetch_retries": "0"}
    env = {f"npm_config_{name}": value for name, value in settings.items()} | {"GIT_SSH_COMMAND": "false"}

    acme.run("npm", "install", f"git+{URL}", cwd=user, env=env, timeout=50)

    module = user / "node_modules/pkg/index.js"
    assert module.read_text() == "module.exports = 1;\n"
    assert "github.com/acme/pkg.git#" in (user / "package-lock.json").read_text()
    shutil.rmtree(user / "node_modules")
    acme.run("npm", "ci", cwd=user, env=env, timeout=50)
    assert module.exists()
    assert minted(acme.github) == [("acme/pkg",)]


def test_go_downloads_a_private_module(acme: Machine) -> None:
    need("go", "golang-go")
    module = package(acme, {"go.mod": "module github.com/acme/pkg\n\ngo 1.19\n", "pkg.go": "package pkg\n"})
    subprocess.run(["git", "-C", module.bare_path, "tag", "v0.1.0", "main"], check=True, env=bare.environment())
    user = project(acme, {"go.mod": "module example.com/user\n\ngo 1.19\n\nrequire github.com/acme/pkg v0.1.0\n"})
    # The cache would else be read-only, and in the way of who clears up.
    env = {"GOPRIVATE": "github.com/acme/*", "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local"}

    acme.run("go", "mod", "download", cwd=user, env=env, timeout=50)

    assert (acme.home / "go/pkg/mod/github.com/acme/pkg@v0.1.0/pkg.go").read_text() == "package pkg\n"
    assert minted(acme.github) == [("acme/pkg",)]


# -- cargo -------------------------------------------------------------------------------------------------------------


MANIFEST = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2021"\n'
CRATE = {"Cargo.toml": MANIFEST.format("pkg"), "src/lib.rs": ""}
USER = {"Cargo.toml": MANIFEST.format("user") + f'[dependencies]\npkg = {{ git = "{URL}" }}\n', "src/lib.rs": ""}


@pytest.fixture
def crate(acme: Machine) -> Path:
    """A crate that depends on a private one; the machine's cargo tries everything once."""
    need("cargo", "cargo")
    acme.env |= {"CARGO_NET_RETRY": "0", "RUSTUP_HOME": RUSTUP_HOME}
    done = acme.run("cargo", "--version", check=False)
    if done.returncode != 0:
        pytest.skip(f"cargo does not run: {done.stderr.strip()}")
    package(acme, CRATE)
    return project(acme, USER)


def locked(crate: Path) -> bool:
    path = crate / "Cargo.lock"
    return path.exists() and f"git+{URL}#" in path.read_text()


def of_cargo(machine: Machine, *before: str | Path) -> dict[str, str]:
    """Return what doctor says about cargo."""
    done = machine.run(*before, "ghapp", "doctor", "--json", check=False)
    return next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "cargo")


def test_cargo_fetches_with_git_which_doctor_advises_behind_a_proxy(acme: Machine, crate: Path) -> None:
    """Its libgit2 gets another transport there, which knows no credentials; `--all` or not."""
    acme.ghapp("setup-git", "--all")
    alone = acme.run("cargo", "fetch", cwd=crate, env={"CARGO_HTTP_CAINFO": acme.env["SSL_CERT_FILE"]}, check=False)
    check = of_cargo(acme)
    acme.ghapp("setup-git", "--undo")
    acme.ghapp("setup-git")
    acme.run("sh", "-c", check["hint"])

    acme.run("cargo", "fetch", cwd=crate)

    assert alone.returncode == 101
    assert "got 401" in alone.stderr
    assert (check["status"], check["message"]) == ("warn", "with HTTPS_PROXY its libgit2 logs in nowhere")
    assert of_cargo(acme)["message"] == "fetches with git itself"
    assert locked(crate)
    assert minted(acme.github) == [("acme/pkg",)]


# Debian's cargo has a libgit2 that trusts this file alone.
CA_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
IN_ITS_OWN_ETC = f"""
mount --bind "$0" /etc/hosts || exit
[ ! -e {CA_CERTIFICATES} ] || mount --bind "$1" {CA_CERTIFICATES} || exit
shift
exec "$@"
"""


@contextlib.contextmanager
def front_door(machine: Machine) -> Iterator[list[str | Path]]:
    """Let GitHub be found without a proxy; give the words that a command has to begin with.

    At port 443 of an address of its own, which the command's own /etc/hosts names.
    """
    port = machine.github.port
    address = f"127.{port >> 8}.{port & 255}.1"
    hosts = machine.work / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{address} github.com api.github.com\n")
    words: list[str | Path] = ["unshare", "--mount", "sh", "-c", IN_ITS_OWN_ETC, hosts, machine.github.ca_file]
    words += ["env", "-u", "HTTPS_PROXY"]
    tried = machine.run(*words, "true", check=False) if shutil.which("unshare") else None
    if tried is None or tried.returncode != 0:
        pytest.skip("no /etc/hosts of one's own here; needs Linux and root")

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as onward:
                back = threading.Thread(target=pump, args=(onward, self.request))
                back.start()
                pump(self.request, onward)
                back.join()

    try:
        server = socketserver.ThreadingTCPServer((address, 443), Relay)
    except PermissionError:
        pytest.skip("port 443 is for root alone")
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield words
        finally:
            server.shutdown()
            thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def test_cargos_own_libgit2_needs_the_hosts_section_as_doctor_says(acme: Machine, crate: Path) -> None:
    acme.ghapp("daemon", "start")  # behind the proxy
    with front_door(acme) as direct:
        plain = acme.run(*direct, "cargo", "fetch", cwd=crate, check=False)
        before = of_cargo(acme, *direct)
        assert minted(acme.github) == []
        acme.run("sh", "-c", before["hint"])

        acme.run(*direct, "cargo", "fetch", cwd=crate)
        after = of_cargo(acme, *direct)

    assert plain.returncode == 101
    assert "failed to acquire username/password" in plain.stderr
    assert (before["status"], before["hint"]) == ("warn", "ghapp setup-git --all")
    assert (after["status"], after["message"]) == ("ok", "its libgit2 finds ghapp in the host's section")
    assert locked(crate)
    assert minted(acme.github) == [("acme/pkg",)]
    agents = [request.user_agent or "" for request in acme.github.requests if "/pkg.git/" in request.path]
    assert not any(agent.startswith("git/") and "libgit2" not in agent for agent in agents), agents
    (line,) = (json.loads(done) for done in acme.ghapp("log", "--json").stdout.splitlines() if '"mint"' in done)
    assert any(each["exe"].endswith("/cargo") for each in line["peer"]["chain"]), line


# -- submodules --------------------------------------------------------------------------------------------------------


def add_submodules(machine: Machine, submodules: Mapping[str, tuple[str, Repository]]) -> None:
    """Push a commit to acme/super that has these, by path: URL and repository."""
    work = machine.work / "first"
    machine.git("clone", "-q", "https://github.com/acme/super.git", work)
    (work / ".gitmodules").write_text(
        "".join(f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n' for path, (url, _) in submodules.items())
    )
    links = "".join(f"160000 {repository.revision()}\t{path}\n" for path, (_, repository) in submodules.items())
    machine.git("update-index", "--index-info", cwd=work, input=links)
    machine.git("add", ".gitmodules", cwd=work)
    machine.git("commit", "-qm", "Add submodules", cwd=work)
    machine.git("push", "-q", cwd=work)


def test_submodules_of_two_owners_are_served_by_the_app_of_each(acme: Machine) -> None:
    github = acme.github
    (first,) = github.apps.values()
    second = github.add_app("globex-bot", PERMISSIONS, owner="globex")
    github.install(second, "globex", repositories=["press"])
    acme.add_app(second)
    acme.ghapp("setup-git")
    github.add_repository("acme/super")
    add_submodules(
        acme,
        {
            "engine": ("../engine.git", github.add_repository("acme/engine")),
            "press": ("https://github.com/globex/press.git", github.add_repository("globex/press")),
        },
    )

    acme.git("clone", "--recurse-submodules", "https://github.com/acme/super.git")

    assert sorted(path.name for path in (acme.work / "super").glob("*/README.md")) == ["README.md"] * 2
    assert [(mint.app, mint.repositories) for mint in github.mints] == [
        (first.id, ("acme/super",)),
        (first.id, ("acme/engine",)),
        (second.id, ("globex/press",)),
    ]


@pytest.mark.slow
def test_fifty_submodules_at_once_cost_one_mint_each(acme: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    github = acme.github
    names = [f"acme/m{number:02}" for number in range(SUBMODULES)]
    github.add_repository("acme/super")
    add_submodules(acme, {name[5:]: (f"../{name[5:]}.git", github.add_repository(name)) for name in names})
    before = len(github.mints)

    began = time.monotonic()
    acme.git("clone", "-q", "--recurse-submodules", "-j8", "https://github.com/acme/super.git", timeout=200)
    took = time.monotonic() - began

    mints = [mint.repositories for mint in github.mints[before:]]
    assert sorted(mints, key=str) == [(name,) for name in names]
    assert len(list((acme.work / "super").glob("*/README.md"))) == SUBMODULES
    with capsys.disabled():
        print(f"\n{SUBMODULES} submodules, 8 at a time: {took:.1f} s, {len(mints)} mints")  # noqa: T201  # asked for


# -- lent for one command ----------------------------------------------------------------------------------------------


def test_under_exec_they_need_no_set_up_of_git_and_the_token_is_dead_afterwards(acme: Machine) -> None:
    """Each hands the environment on to git, and git to the git of a submodule."""
    github = acme.github
    package(acme, {**PYTHON, **CRATE, "go.mod": "module github.com/acme/pkg\n", "pkg.go": "package pkg\n"})
    github.add_repository("acme/super")
    add_submodules(acme, {"engine": ("../engine.git", github.add_repository("acme/engine"))})
    acme.ghapp("setup-git", "--undo")
    acme.ghapp("daemon", "stop")
    user = project(acme, {**USER, "go.mod": "module example.com/user\n"})
    acme.env |= {"CARGO_NET_RETRY": "0", "RUSTUP_HOME": RUSTUP_HOME, "CARGO_NET_GIT_FETCH_WITH_CLI": "true"}
    acme.env |= {"GOPRIVATE": "github.com/acme/*", "GOFLAGS": "-mod=mod -modcacherw", "GOTOOLCHAIN": "local"}
    uv = (
        "uv",
        "pip",
        "install",
        "--no-index",
        "--no-build-isolation",
        "--python",
        str(BIN / "python"),
        "--target",
        ".",
    )
    commands = {
        "acme_pkg/__init__.py": (*uv, f"git+{URL}"),
        "go.sum": ("go", "get", "github.com/acme/pkg"),
        "Cargo.lock": ("cargo", "fetch"),
        "super/engine/README.md": ("git", "clone", "--recurse-submodules", "https://github.com/acme/super.git"),
    }
    here = {made: command for made, command in commands.items() if runs(acme, command[0])}
    before = len(github.mints)

    for command in here.values():
        acme.ghapp("exec", "acme/pkg", "acme/super", "acme/engine", "--", *command, cwd=user, timeout=50)

    assert [made for made in here if not (user / made).exists()] == []
    assert set(minted(github)[before:]) == {("acme/engine", "acme/pkg", "acme/super")}
    assert len(github.mints[before:]) == len(here)
    assert [mint for mint in github.mints if github.live_token(mint.token) is not None] == []
