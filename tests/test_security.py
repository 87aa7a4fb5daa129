"""SECURITY.md tells the truth: every requirement has its row, and what a row names exists."""

import ast
import functools
import re
from pathlib import Path

import pytest
from conftest import ROOT

from ghapp import errors


REFERENCE = ROOT.parent / "shared" / "reference" / "security.md"
NO_TEST = re.compile(r"— \(.+\)")
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows(letter: str) -> list[list[str]]:
    """Return the cells of every row of SECURITY.md whose first is a number with that letter."""
    lines = (ROOT / "SECURITY.md").read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if re.match(rf"\| {letter}-?\d+ \|", line)
    ]


def promised(pattern: str) -> list[str]:
    """Return the numbers that the reference states."""
    if not REFERENCE.exists():
        pytest.skip("the reference is not here")
    return re.findall(pattern, REFERENCE.read_text(), re.MULTILINE)


@functools.cache
def defined_in(path: str) -> frozenset[str]:
    """Return the names of the test functions that a file defines."""
    if not (ROOT / path).is_file():
        return frozenset()
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


@pytest.mark.parametrize(("letter", "pattern"), [("R", r"^- \*\*(R-\d+)\*\*"), ("F", r"^\| (F\d+) \|")], ids="RF")
def test_every_number_of_the_reference_has_exactly_one_row(letter: str, pattern: str) -> None:
    stated = promised(pattern)

    assert len(stated) > 50
    assert [cells[0] for cells in rows(letter)] == stated


@pytest.mark.parametrize(("letter", "columns"), [("R", 4), ("F", 4)])
def test_every_row_is_whole(letter: str, columns: int) -> None:
    found = rows(letter)

    assert len(found) > 50
    assert [cells for cells in found if len(cells) != columns or not all(cells)] == []


def test_every_place_exists() -> None:
    places = [(cells[0], place) for cells in rows("R") for place in cells[2].split(", ")]

    assert [place for place in places if not (ROOT / place[1].strip("`")).exists()] == []


@pytest.mark.parametrize("letter", ["R", "F"])
def test_every_row_names_tests_that_exist_or_says_why_there_is_none(letter: str) -> None:
    for number, *_, last in rows(letter):
        if NO_TEST.fullmatch(last):
            continue
        for named in last.split("<br>"):
            match = NAMED_TEST.fullmatch(named)
            assert match, (number, named)
            assert match[2] in defined_in(match[1]), (number, named)


def test_every_test_that_is_named_anywhere_exists() -> None:
    named = NAMED_TEST.findall((ROOT / "SECURITY.md").read_text())

    assert len(named) > 200
    assert [(path, name) for path, name in named if name not in defined_in(path)] == []


def test_every_event_that_ends_tokens_or_does_not_names_a_test() -> None:
    section = (ROOT / "SECURITY.md").read_text().partition("\n## When tokens end\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]

    assert len(cells) == 6
    assert [
        row[0] for row in cells if not all(NAMED_TEST.fullmatch(test) for test in row[2].strip().split("<br>"))
    ] == []


def test_every_fault_has_a_code_that_exists_or_none() -> None:
    tree, codes = [errors.GhappError], {"E44", "E46", "none"}  # the front's own
    while tree:
        cls = tree.pop()
        tree += cls.__subclasses__()
        codes.add(getattr(cls, "code", "none"))

    for number, _, named, _ in rows("F"):
        assert set(named.split(", ")) <= codes, number


def code_of(path: Path) -> str:
    """Return the code of a file without its comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]  # as just seen
                part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ] or [ast.Pass()]
    return ast.unparse(tree)


def test_nothing_that_prints_inputs_or_locals_is_used() -> None:
    pattern = (
        r"rich\.traceback|pydantic|sentry|capture_locals|debuglevel|cgitb|traceback\.(?:print|format)_|exc_info=True"
    )
    files = sorted((ROOT / "src/ghapp").rglob("*.py"))

    assert len(files) > 30
    assert [path.name for path in files if re.search(pattern, code_of(path))] == []
