"""The documents tell the truth: names, codes and paths in them are those of the code."""

import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from ghapp import config, errors
from ghapp.cli import cli, run
from ghapp.cli import exec as execute


DOCUMENTS = ("README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/lending.md")
CODES_OUTSIDE_THE_TREE = {
    "E44",  # client.py, which imports no errors
    "E46",  # the sh front
}


def classes(base: type[errors.GhappError] = errors.GhappError) -> set[type[errors.GhappError]]:
    """Return the errors below `base` that our error module defines."""
    found = {cls for cls in base.__subclasses__() if cls.__module__ == "ghapp.errors"}
    return found | {below for cls in found for below in classes(cls)}


def own_codes() -> set[str]:
    return {cls.code for cls in classes() if "code" in vars(cls)}


def test_every_code_is_listed_in_security_md_and_no_other() -> None:
    listed = re.findall(r"^\| (E\d+) \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)

    assert listed == sorted(set(listed))
    assert set(listed) == own_codes() | CODES_OUTSIDE_THE_TREE


def test_every_error_stands_in_the_tree_that_heads_the_module() -> None:
    head = errors.__doc__ or ""

    for cls in classes():
        assert re.search(rf"\b{cls.__name__}\b", head), cls
        if "code" in vars(cls):
            assert re.search(rf"\b{cls.__name__} +{cls.code}\b", head), cls


def test_no_two_errors_share_a_code() -> None:
    codes = [cls.code for cls in classes() if "code" in vars(cls)]

    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_named_in_a_document_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    paths = [ROOT / path for path in re.findall(r"`((?:tests|install|src)/[\w./-]+)`", text)]
    paths += [(ROOT / name).parent / path for path in re.findall(r"\]\(([\w./-]+\.md)\)", text)]

    assert [path for path in paths if not path.exists()] == []


def test_links_within_the_guide_lead_to_its_headings() -> None:
    text = (ROOT / "docs/lending.md").read_text()
    headings = {
        heading.lower().replace(",", "").replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([\w-]+)\)", text)

    assert links
    assert set(links) <= headings


def test_what_is_built_from_has_every_document() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]

    assert {"/*.md", "/docs"} <= set(included)


def test_every_command_stands_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()

    assert [name for name in cli.list_commands(None) if f"ghapp {name}" not in text] == []  # type: ignore[arg-type]  # unused there


def test_every_module_has_a_row_in_architecture_md() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = {path.stem for path in (ROOT / "src/ghapp").glob("*.py")} - {"__init__", "__main__"}

    assert sorted(name for name in modules if f"`{name}`" not in text) == []


def test_both_commands_of_the_readme_are_files_of_ours() -> None:
    text = (ROOT / "README.md").read_text()

    for command in ("sh install/demo.sh", "sh install/test.sh"):
        assert command in text
        assert (ROOT / command.removeprefix("sh ")).exists()


def test_the_configuration_of_the_readme_can_be_read(tmp_path: Path) -> None:
    (sample,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "config.toml"
    path.write_text(sample)
    path.chmod(0o600)

    found = config.load(path)

    assert [app.name for app in found.apps] == ["acme-bot"]


def help_blocks() -> list[tuple[str, str]]:
    """Return the commands whose help the README shows, and what it shows."""
    return re.findall(
        r"```console\n\$ (ghapp(?: [\w-]+)* --help)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )


@pytest.mark.parametrize(("command", "shown"), help_blocks(), ids=[command for command, _ in help_blocks()])
def test_the_help_that_the_readme_shows_is_what_is_printed(
    command: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    assert run(command.split()[1:]) == 0
    assert shown == capsys.readouterr().out


def test_the_readme_shows_the_help_of_ghapp_and_of_setup() -> None:
    assert {"ghapp --help", "ghapp setup --help"} <= {command for command, _ in help_blocks()}


@pytest.mark.parametrize("name", ["README.md", "install/man/ghapp.1"])
def test_exit_codes_are_told_with_those_of_exec(name: str) -> None:
    text = (ROOT / name).read_text()
    told = text[re.search(r"Exit codes: |\.SH EXIT STATUS\n", text).end() :][:400]  # type: ignore[union-attr]

    codes = (0, 1, 2, 130, execute.OURS, execute.NOT_EXECUTABLE, execute.NOT_FOUND)
    assert [code for code in codes if not re.search(rf"\b{code}\b", told)] == []
