"""The tree of failures, and what the rest relies on."""

import inspect
import re

import pytest

from ghapp import errors
from ghapp.errors import AppRejected, Declined, Failed, GhappError, NetworkFailed, NotSelected, RateLimited, UsageError


KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GhappError)]
LEAVES = [kind for kind in KINDS if kind not in {GhappError, Declined, Failed}]


def test_every_code_is_used_once() -> None:
    codes = [kind.code for kind in LEAVES]

    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"E\d\d", code) and code != "E00" for code in codes)


def test_the_tree_in_the_documentation_is_the_tree() -> None:
    drawn = re.findall(r"── (\w+) +(E\d\d)", errors.__doc__ or "")

    assert sorted(drawn) == sorted((kind.__name__, kind.code) for kind in LEAVES)


@pytest.mark.parametrize("kind", LEAVES)
def test_git_is_stopped_unless_somebody_else_may_have_a_credential(kind: type[GhappError]) -> None:
    assert kind.stops_git is not issubclass(kind, Declined)


@pytest.mark.parametrize(
    ("error", "text", "hint", "remember"),
    [
        (NetworkFailed("cannot resolve x", hint="check"), "cannot resolve x (E11)", "check", 3.0),
        (NotSelected("not on x"), "not on x (E20)", "", 30.0),
        (AppRejected("wrong key"), "wrong key (E22)", "", 60.0),
        (RateLimited("until 14:00", wait=17.0, hint="wait"), "until 14:00 (E26)", "wait", 17.0),
        (UsageError("what?"), "what? (E01)", "", 3.0),
    ],
)
def test_an_error_says_what_it_is_and_how_long_it_holds(
    error: GhappError, text: str, hint: str, remember: float
) -> None:
    assert (str(error), error.hint, error.remember) == (text, hint, remember)
