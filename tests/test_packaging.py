"""What the wheel brings besides the package: manual pages, completions, systemd units."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import click
import pytest
from command_line import Ghapp
from conftest import ROOT

from ghapp import service
from ghapp.cli import cli


INSTALL = ROOT / "install"
AGAIN = "run: .venv/bin/python install/man.py"
SHARED = {
    "share/man/man1/ghapp.1": "man/ghapp.1",
    "share/man/man1/git-credential-ghapp.1": "man/git-credential-ghapp.1",
    "share/man/man5/ghapp-config.5": "man/ghapp-config.5",
    "share/bash-completion/completions/ghapp": "completions/ghapp.bash",
    "share/zsh/site-functions/_ghapp": "completions/_ghapp",
    "share/fish/vendor_completions.d/ghapp.fish": "completions/ghapp.fish",
}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("man", INSTALL / "man.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    pytest.importorskip("hatchling")
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = directory.glob("*.whl")
    with zipfile.ZipFile(path) as packed:
        packed.extractall(directory / "unpacked")
    return directory / "unpacked"


def test_the_manual_pages_are_what_the_command_line_says_now(generator: ModuleType) -> None:
    there = {path.name: path.read_text() for path in (INSTALL / "man").iterdir()}

    assert there == generator.pages(), AGAIN


def test_the_completions_are_what_ghapp_completion_prints(ghapp: Ghapp, generator: ModuleType) -> None:
    there = {path.name: path.read_text() for path in (INSTALL / "completions").iterdir()}
    printed = {name: ghapp("completion", shell).out for shell, name in generator.SHELLS.items()}

    assert there == printed, AGAIN


def test_every_command_and_option_stands_in_the_manual() -> None:
    page = (INSTALL / "man/ghapp.1").read_text().replace("\\-", "-")
    seen = 0

    def walk(context: click.Context) -> None:
        nonlocal seen
        command = context.command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                walk(click.Context(below, info_name=name, parent=context))
            return
        section = page.partition(f".SS {context.command_path} ")[2].partition("\n.SS ")[0]
        assert section, context.command_path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in section, (context.command_path, parameter.opts)
                seen += 1

    # A command keeps the help option that it is asked for first: that of other settings would stay for other tests.
    walk(click.Context(cli, info_name="ghapp", **cli.context_settings))
    assert seen > 30


@pytest.mark.parametrize("name", ["ghapp.1", "git-credential-ghapp.1", "ghapp-config.5"])
def test_a_manual_page_is_read_without_a_warning_and_holds_no_trace_of_roff(name: str) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not here (apt install groff-base)")

    done = subprocess.run(
        [groff, "-man", "-ww", "-Tutf8", "-rLL=100n", str(INSTALL / "man" / name)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == ""
    shown = plain(done.stdout)
    assert "NAME" in shown
    assert "\\" not in shown
    assert not re.search(r"^\s*\.[A-Z]{1,2}\b", shown, re.MULTILINE)


def test_the_wheel_brings_them_where_man_and_the_shells_look(wheel: Path) -> None:
    (data,) = wheel.glob("ghapp-*.data")
    brought = {
        str(path.relative_to(data / "data")): path.read_bytes() for path in (data / "data").rglob("*") if path.is_file()
    }

    assert brought == {target: (INSTALL / source).read_bytes() for target, source in SHARED.items()}


def test_the_wheel_brings_the_units_where_daemon_install_looks_first(wheel: Path) -> None:
    for name in service.UNITS:
        assert (wheel / "ghapp" / "units" / name).read_bytes() == (INSTALL / "systemd" / name).read_bytes()
    program = "from ghapp import service; print(service.render('ghapp.service', ['/x']), service.__file__)"
    environment = os.environ | {"PYTHONPATH": str(wheel)}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    assert "\nExecStart=/x\n" in done.stdout
    assert str(wheel) in done.stdout


def plain(shown: str) -> str:
    """Return what a terminal would show, without bold and underline of either kind."""
    return re.sub(r"\x1b\[[\d;]*m|.\x08", "", shown)


def test_git_help_opens_our_page(wheel: Path, tmp_path: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not here (apt install man-db)")
    (data,) = wheel.glob("ghapp-*.data")
    environment = os.environ | {"MANPATH": str(data / "data/share/man"), "MANPAGER": "cat", "MANWIDTH": "80"}
    shutil.copy2(INSTALL / "git-credential-ghapp", tmp_path)  # to git a command is what is on PATH
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"

    done = subprocess.run(
        ["git", "help", "--man", "credential-ghapp"], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "let git use tokens of a GitHub App" in plain(done.stdout)


def test_bash_completes_from_the_file_that_is_shipped(wheel: Path, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not here")
    ours = tmp_path / "ghapp"
    ours.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ghapp "$@"\n')
    ours.chmod(0o755)
    script = next(wheel.glob("ghapp-*.data/data/share/bash-completion/completions/ghapp"))
    program = (
        f'PATH="{tmp_path}:$PATH"; . "{script}"; COMP_WORDS=(ghapp daemon inst); COMP_CWORD=2; '
        'COMP_LINE="ghapp daemon inst"; complete -p ghapp; _ghapp_completion ghapp inst daemon; echo "${COMPREPLY[@]}"'
    )

    done = subprocess.run([bash, "-c", program], capture_output=True, text=True, check=True)

    assert "complete -o nosort -F _ghapp_completion ghapp" in done.stdout
    assert done.stdout.splitlines()[-1] == "install"
