"""Permissions, scopes, and whether a token is what was asked for."""

import dataclasses

import pytest
from fakes import make_installation
from hypothesis import given
from hypothesis import strategies as st

from ghapp.errors import PermissionMissing
from ghapp.installation import (
    ALL,
    Installation,
    InstallationId,
    Permissions,
    Repositories,
    Scope,
    check_granted,
    exceeds,
    git_permissions,
    permissions_of,
    read_only_of,
    wider_than,
)


PAGE = "accept the app's permissions at https://github.com/organizations/acme/settings/installations/7"


def scope(repositories: Repositories = ("one",), permissions: Permissions = (("contents", "write"),)) -> Scope:
    return Scope("https://api", "Iv1", "SHA256:k", InstallationId(7), repositories, permissions)


def test_permissions_are_equal_whatever_their_order() -> None:
    assert permissions_of({"b": "read", "a": "write"}) == permissions_of({"a": "write", "b": "read"})
    assert permissions_of({"b": "read", "a": "write"}) == (("a", "write"), ("b", "read"))


@pytest.mark.parametrize(
    ("permissions", "limit", "expected"),
    [
        ((("a", "read"),), (("a", "write"),), []),
        ((("a", "write"),), (("a", "admin"),), []),
        ((("a", "write"),), (("a", "read"),), ["a: write"]),
        ((("a", "admin"), ("b", "read")), (("a", "write"),), ["a: admin", "b: read"]),
        ((("a", "maintain"),), (("a", "admin"),), ["a: maintain"]),
        ((("a", "read"),), (("a", "maintain"),), ["a: read"]),
        ((("metadata", "read"),), (), []),
        ((("metadata", "write"),), (), ["metadata: write"]),
        ((), (), []),
    ],
)
def test_what_exceeds_a_limit_is_named(permissions: Permissions, limit: Permissions, expected: list[str]) -> None:
    assert exceeds(permissions, limit) == expected


def test_read_only_leaves_out_what_cannot_be_read_only() -> None:
    granted = (
        ("contents", "write"),
        ("issues", "admin"),
        ("metadata", "read"),
        ("profile", "write"),
        ("workflows", "write"),
    )

    assert read_only_of(granted) == (("contents", "read"), ("issues", "read"), ("metadata", "read"))


@pytest.mark.parametrize(
    ("granted", "configured", "expected"),
    [
        (
            {"contents": "write", "issues": "write", "workflows": "write"},
            None,
            (("contents", "write"), ("workflows", "write")),
        ),
        ({"contents": "read"}, None, (("contents", "read"),)),
        ({"contents": "write"}, (("contents", "read"),), (("contents", "read"),)),
        ({"contents": "write", "pages": "read"}, (("pages", "read"),), (("pages", "read"),)),
        ({}, (("metadata", "read"),), (("metadata", "read"),)),
        ({"workflows": "write"}, None, "acme has not granted the app contents: read"),
        ({"contents": "read"}, (("contents", "write"),), "acme has not granted the app contents: write"),
        ({}, (("a", "read"), ("b", "read")), "acme has not granted the app a: read, b: read"),
    ],
)
def test_git_gets_the_least_it_needs_of_what_was_granted(
    granted: dict[str, str], configured: Permissions | None, expected: Permissions | str
) -> None:
    installation = make_installation(permissions=permissions_of(granted))
    if isinstance(expected, tuple):
        assert git_permissions(installation, configured) == expected
        return

    with pytest.raises(PermissionMissing) as caught:
        git_permissions(installation, configured)

    assert (caught.value.message, caught.value.hint) == (expected, PAGE)


def test_what_was_granted_passes_the_check() -> None:
    check_granted(make_installation(), (("contents", "read"), ("metadata", "read")))


@pytest.mark.parametrize(
    ("asked", "permissions", "selection", "repositories", "expected"),
    [
        (("one",), {"contents": "write", "metadata": "read"}, "selected", [(1, "One")], ""),
        (("one",), {"contents": "read"}, "selected", [(1, "one")], ""),
        ((1,), {"contents": "read"}, "selected", [(1, "whatever")], ""),
        ((2, "one"), {"contents": "read"}, "selected", [(1, "one"), (2, "new")], ""),
        (ALL, {"contents": "write"}, "all", [], ""),
        (ALL, {"contents": "write"}, "selected", [], ""),
        (ALL, {"pages": "read"}, "all", [], "it allows pages: read"),
        (("one",), {"contents": "admin"}, "selected", [(1, "one")], "it allows contents: admin"),
        (("one",), {"contents": "write"}, "all", [(1, "one")], "it reaches every repository"),
        (("one",), {"contents": "write"}, "", [(1, "one")], "it reaches every repository"),
        (("one",), {}, "selected", [(1, "one"), (2, "two")], "its repositories differ in two"),
        (("one", "two"), {}, "selected", [(1, "one")], "its repositories differ in two"),
        (("one",), {}, "selected", [], "its repositories differ in one"),
        (("1",), {}, "selected", [(1, "two")], "its repositories differ in 1, two"),
        ((1,), {}, "selected", [(2, "1")], "its repositories differ in 1, 1"),
        (("one",), {}, "selected", [(1, "one"), (2, "one")], "its repositories differ in one"),
    ],
)
def test_a_token_other_than_asked_for_is_described(
    asked: Repositories,
    permissions: dict[str, str],
    selection: str,
    *,
    repositories: list[tuple[int, str]],
    expected: str,
) -> None:
    assert wider_than(scope(asked), permissions_of(permissions), selection, repositories) == expected


@pytest.mark.parametrize(("repositories", "permissions"), [((), (("contents", "read"),)), (("one",), ()), (ALL, ())])
def test_a_scope_is_never_empty_because_github_reads_that_as_everything(
    repositories: Repositories, permissions: Permissions
) -> None:
    with pytest.raises(ValueError, match="a scope names"):
        scope(repositories, permissions)


WORD = st.sampled_from(["a", "b", "ab", "all", "1", "a|b", "a,b", ""])
PERMISSIONS = st.dictionaries(WORD, st.sampled_from(["read", "write"]), min_size=1, max_size=2).map(permissions_of)
REPOSITORIES = st.one_of(
    st.just(ALL),
    st.sets(st.one_of(WORD, st.integers(1, 3)), min_size=1, max_size=2).map(
        lambda names: tuple(sorted(names, key=repr))
    ),
)
FIELDS = st.tuples(WORD, WORD, WORD, st.integers(1, 3).map(InstallationId), REPOSITORIES, PERMISSIONS)


@given(FIELDS, FIELDS)
def test_scopes_are_equal_exactly_when_every_part_is(one: tuple[object, ...], two: tuple[object, ...]) -> None:
    first, second = Scope(*one), Scope(*two)  # type: ignore[arg-type]  # generated in order

    assert (first == second) is (one == two)
    assert len({first: 1, second: 2}) == (1 if one == two else 2)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Scope)])
def test_no_part_of_a_scope_is_left_out_of_the_comparison(field: str) -> None:
    others: dict[str, object] = {"installation": 8, "repositories": ("two",), "permissions": (("contents", "read"),)}

    assert dataclasses.replace(scope(), **{field: others.get(field, "other")}) != scope()  # type: ignore[arg-type]


def test_an_installation_is_a_value() -> None:
    assert make_installation() == make_installation()
    assert isinstance(make_installation(), Installation)
