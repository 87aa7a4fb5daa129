"""`ghapp uninstall`: everything out again, and nothing else."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Ghapp, register
from fakes_keyring import Keyring
from fakes_process import end_daemon
from fakes_systemd import Systemctl
from standin.model import App
from standin.server import StandIn

from ghapp import config, gitconfig, paths, process
from ghapp.cli import uninstall


@pytest.fixture
def home() -> Path:
    return Path(os.environ["HOME"])


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[App]:
    app = github.add_app("acme-bot", {"contents": "write"})
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    register(app, tmp_path)
    helper = tmp_path / "bin" / gitconfig.HELPER
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\n")
    helper.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(helper.with_name("ghapp"))])
    yield app
    if Path(paths.runtime_dir()).exists():
        end_daemon(Path(paths.runtime_dir()))


def everything(directory: Path) -> dict[str, bytes | None]:
    """Return what lies below `directory`: files with their content, directories without."""
    found = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes() for path in found}


def test_all_of_it_goes_and_what_was_there_before_is_as_it_was(
    ghapp: Ghapp, app: App, home: Path, github: StandIn
) -> None:
    (home / ".gitconfig").write_bytes(b"[user]\n\tname = Me")
    (home / ".config" / "other").mkdir(parents=True)
    (home / ".local" / "state").mkdir(parents=True)
    registered = config.config_file()
    kept = registered.read_bytes()
    registered.unlink()
    for path in registered.parent.iterdir():
        path.unlink()
    registered.parent.rmdir()
    before = everything(home)
    registered.parent.mkdir(mode=0o700)
    registered.write_bytes(kept)
    assert ghapp("setup-git", "--identity").code == 0
    token = ghapp("token", "acme/rocket").out.strip()
    assert process.lock_holder(paths.runtime_dir())
    assert github.live_token(token)

    done = ghapp("uninstall", "--yes")

    assert (done.code, done.out) == (0, "")
    assert everything(home) == before
    assert github.live_token(token) is None
    for line in (
        f"in {home}/.gitconfig: our lines",
        f"in {registered.parent}: config.toml",
        "the daemon (pid ",
        "all of it is gone",
    ):
        assert line in done.err
    assert f"stays: key file {app.slug}" not in done.err
    assert "stays: key file /" in done.err
    assert "stays: the app acme-bot on github.com" in done.err
    assert done.err.endswith("uninstall ghapp\n")

    again = ghapp("uninstall")
    assert (again.code, again.err.splitlines()[0]) == (0, "nothing of ghapp is set up here")


def test_directories_that_a_killed_run_has_emptied_go_with_the_next(ghapp: Ghapp) -> None:
    places = [config.config_dir(), config.state_dir()]
    for place in places:
        place.mkdir(parents=True)

    assert ghapp("uninstall").err.startswith("nothing of ghapp is set up here\n")

    assert not [place for place in places if place.exists()]


def test_without_a_terminal_it_lists_and_needs_yes(ghapp: Ghapp, app: App, home: Path) -> None:
    before = everything(home)

    done = ghapp("uninstall")

    assert done.code == 2
    assert app.slug
    assert f"this goes:\n  in {config.config_dir()}: config.toml" in done.err
    assert "ghapp: error: nobody is here to confirm that (E01)\nghapp: hint: ghapp uninstall --yes\n" in done.err
    assert everything(home) == before


@pytest.mark.usefixtures("app")
def test_on_a_terminal_it_asks_and_no_means_no(ghapp: Ghapp, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(home)
    asked = []

    def answer_no(question: str, **_options: object) -> bool:
        asked.append(question)
        return False

    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr("click.confirm", answer_no)

    done = ghapp("uninstall")

    assert done.code == 1
    assert done.err.endswith("ghapp: error: nothing was changed\n")
    assert asked == ["take all of it out?"]
    assert everything(home) == before


def test_what_is_not_ours_stays_and_is_named(ghapp: Ghapp, app: App) -> None:
    theirs = config.config_dir() / f"{app.slug}.pem"
    theirs.write_text("a key, say")
    log = config.state_dir() / "daemon.log"
    log.parent.mkdir(parents=True)
    log.touch()
    (log.parent / "grants").mkdir()
    (log.parent / "grants" / "one").touch()

    done = ghapp("uninstall", "--yes")

    assert done.code == 0
    assert list(config.config_dir().iterdir()) == [theirs]
    assert f"stays: {config.config_dir()}, which holds something that is not ours" in done.err
    assert not log.parent.exists()


def test_the_systemd_units_go_after_the_tokens_were_revoked(
    ghapp: Ghapp, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, binaries = tmp_path / "runtime", tmp_path / "systemctl"
    runtime.mkdir(mode=0o700)
    binaries.mkdir()
    monkeypatch.delenv("GHAPP_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    systemctl = Systemctl(runtime, binaries)
    monkeypatch.setenv("PATH", systemctl.path)
    assert ghapp("daemon", "install", "--no-start").code == 0
    systemctl.then("exit 1")
    assert ghapp("token", f"{app.owner.login}/rocket").code == 0  # by a daemon that systemd did not start
    systemctl.then(f'[ -e "{runtime}/ghapp/git.sock" ] && echo alive >>"{systemctl.log}"; exit 0')

    done = ghapp("uninstall", "--yes")

    assert done.code == 0
    assert "revoked 1 token" in done.err
    assert done.err.count("systemd unit ") == 3
    assert [line.split()[0] for line in systemctl.asked[-3:]] == ["disable", "daemon-reload", "reset-failed"]
    assert [path for path in (config.config_dir().parent / "systemd").rglob("*") if path.is_file()] == []
    assert not (runtime / "ghapp").exists()


@pytest.fixture
def bot(keyring: Keyring) -> None:  # noqa: ARG001  # configured first
    """An app with a key in the keyring and another in a file; nobody put them there."""
    table = {"name": "bot", "app_id": 7, "client_id": "Iv1", "keys": ["keyring:SHA256:a/b", "file:/k.pem"]}
    config.put_app(config.config_file(), table)


@pytest.mark.usefixtures("bot")
def test_keys_in_the_keyring_go_too(ghapp: Ghapp, keyring: Keyring) -> None:
    done = ghapp("uninstall", "--yes")

    assert done.code == 0
    assert keyring.deleted == ["github.com/7/SHA256:a/b", "github.com/Iv1/SHA256:a/b"]
    assert "  key SHA256:a/b in the keyring\n" in done.err
    assert "stays: key file /k.pem\n" in done.err


@pytest.mark.usefixtures("bot")
def test_keys_in_the_keyring_stay_if_that_is_wished(ghapp: Ghapp, keyring: Keyring) -> None:
    done = ghapp("uninstall", "--yes", "--keep-keys")

    assert done.code == 0
    assert keyring.deleted == []
    assert "stays: 1 key in the keyring, service ghapp\n" in done.err
    assert not config.config_file().exists()


@pytest.mark.usefixtures("bot")
def test_a_keyring_that_refuses_keeps_the_configuration_that_names_its_keys(ghapp: Ghapp, keyring: Keyring) -> None:
    keyring.refuse("locked")

    failed = ghapp("uninstall", "--yes")

    assert failed.code == 1
    assert "ghapp: warning: a key of bot is still in the keyring, and so the configuration stays" in failed.err
    assert failed.err.endswith("ghapp: hint: run it again, or: ghapp uninstall --keep-keys\n")
    assert config.config_file().exists()
    keyring.relent()
    assert ghapp("uninstall", "--yes").code == 0
    assert not config.config_file().exists()


def test_a_broken_configuration_hides_no_keys(ghapp: Ghapp) -> None:
    config.config_file().parent.mkdir(parents=True)
    config.config_file().write_text("[deamon]\n")

    failed = ghapp("uninstall", "--yes")

    assert failed.code == 1
    assert f"; --keep-keys does without it (E51)\nghapp: hint: edit {config.config_file()}\n" in failed.err
    assert config.config_file().exists()
    assert ghapp("uninstall", "--yes", "--keep-keys").code == 0
    assert not config.config_file().parent.exists()


def test_our_lines_in_a_repository_are_named_with_what_removes_them(
    ghapp: Ghapp, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    assert os.system("git init -q .") == 0  # noqa: S605  # a fixed line
    assert ghapp("setup-git", "--local").code == 0

    done = ghapp("uninstall", "--yes")

    assert app.slug
    assert "stays: our lines in git's --local configuration\nghapp: hint: ghapp setup-git --local --undo\n" in done.err
    assert ghapp("setup-git", "--local", "--undo").code == 0
    assert "--local" not in ghapp("uninstall").err


@pytest.mark.parametrize(
    ("prefix", "receipt", "command"),
    [
        ("home/me/.local/share/uv/tools/ghapp", "", "uv tool uninstall ghapp"),
        ("opt/tools/ghapp", "uv-receipt.toml", "uv tool uninstall ghapp"),
        ("home/me/.local/share/pipx/venvs/ghapp", "", "pipx uninstall ghapp"),
        ("opt/pipx-home/ghapp", "pipx_metadata.json", "pipx uninstall ghapp"),
        ("my venv", "", f"'{sys.executable} here' -m pip uninstall ghapp"),
    ],
)
def test_the_package_is_removed_by_what_installed_it(
    prefix: str, receipt: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / prefix).mkdir(parents=True)
    if receipt:
        (tmp_path / prefix / receipt).touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path / prefix))
    monkeypatch.setattr("sys.executable", f"{sys.executable} here")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())

    assert uninstall._package_command() == command


def test_an_environment_without_pip_is_uvs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("sys.prefix", "/opt/venv")
    monkeypatch.setattr("sys.executable", "/opt/venv/bin/python")

    assert uninstall._package_command() == "uv pip uninstall --python /opt/venv/bin/python ghapp"


def test_keys_in_our_own_directory_stay_and_are_named_with_what_removes_them(ghapp: Ghapp, app: App) -> None:
    keys = config.config_dir() / "keys"
    keys.mkdir()
    used, other = keys / "acme-bot.pem", keys / "other one.pem"
    for path in (used, other):
        path.touch(mode=0o600)
        path.write_bytes(app.private_key_pem)
    table = {"name": app.slug, "app_id": app.id, "keys": [f"file:{used}", "file:/run/secrets/none.pem"]}
    config.put_app(config.config_file(), table)

    done = ghapp("uninstall", "--yes")
    (remove,) = re.findall("^ghapp: hint: once nothing needs them: (.*)", done.err, re.MULTILINE)

    for path in (used, other, Path("/run/secrets/none.pem")):
        assert f"stays: key file {path}\n" in done.err
    assert "not ours" not in done.err
    assert remove == f"rm {used} '{other}'"
    assert sorted(config.config_dir().rglob("*")) == [keys, used, other]
    assert os.system(remove) == 0  # noqa: S605  # the hint as it stands
    assert ghapp("uninstall").code == 0
    assert not config.config_dir().exists()
