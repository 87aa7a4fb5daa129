"""Leases and the book of them, with the time passed in."""

import base64
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghapp.credential import Repository
from ghapp.installation import InstallationId, Scope
from ghapp.lease import HAND_OUT, LAST_RESORT, Lease, LeaseBook, token_sha256


def scope(name: str = "one") -> Scope:
    return Scope("https://api", "Iv1", "SHA256:k", InstallationId(7), (name,), (("contents", "write"),))


def lease(number: int = 1, ends: float = 3600.0, name: str = "one") -> Lease:
    return Lease(f"l{number}", scope(name), "bot", "acme", (name,), (), f"ghs_{number}", ends)


def book(*leases: Lease) -> LeaseBook:
    filled = LeaseBook()
    for item in leases:
        filled.put(item)
    return filled


@pytest.mark.parametrize(
    ("now", "at_least", "found"),
    [
        (0, HAND_OUT, True),
        (3600 - HAND_OUT, HAND_OUT, True),
        (3600 - HAND_OUT + 0.001, HAND_OUT, False),
        (3600 - LAST_RESORT, LAST_RESORT, True),
        (3600 - LAST_RESORT + 0.001, LAST_RESORT, False),
        (3600 + HAND_OUT, HAND_OUT, False),
    ],
)
def test_a_lease_is_handed_out_until_its_margin_and_never_after_its_end(
    now: float, at_least: float, *, found: bool
) -> None:
    assert book(lease()).find(scope(), now, at_least=at_least) == (lease() if found else None)


@given(st.floats(0, 1e9), st.floats(0, 1e5), st.floats(0, 1e5))
def test_what_is_found_lives_at_least_as_long_as_was_asked(ends: float, passed: float, at_least: float) -> None:
    now = ends - passed

    found = book(lease(ends=ends)).find(scope(), now, at_least=at_least)

    assert (found is not None) is (ends - now >= at_least)
    assert found is None or found.remaining(now) >= at_least


def test_a_lease_is_found_for_exactly_its_scope() -> None:
    assert book(lease()).find(scope("two"), 0) is None


def test_a_new_lease_takes_the_place_of_the_one_for_its_scope() -> None:
    held = book(lease(1))
    held.count_use(lease(1), now=0)

    held.put(lease(2))
    held.count_use(lease(2), now=0)

    assert held.find(scope(), 0) == lease(2)
    assert list(held.live(0)) == [lease(1), lease(2)]  # git commands may be using the first
    assert (held.uses(lease(1)), held.uses(lease(2))) == (1, 1)
    assert held.drop("l1") == lease(1)
    assert held.find(scope(), 0) == lease(2)


def test_a_scope_counts_as_used_for_as_long_as_is_asked() -> None:
    held = book(lease(1))
    assert not held.used_within(scope(), 1800, now=5)

    held.count_use(lease(1), now=10)

    assert held.used_within(scope(), 1800, now=1810)
    assert not held.used_within(scope(), 1800, now=1811)


def test_uses_are_counted_until_the_lease_is_dropped() -> None:
    held = book(lease(1), lease(2, name="two"))
    for _ in range(3):
        held.count_use(lease(1), now=0)

    assert (held.uses(lease(1)), held.uses(lease(2))) == (3, 0)
    assert held.drop("l1") == lease(1)
    assert held.drop("l1") is None
    assert held.uses(lease(1)) == 0


@pytest.mark.parametrize(
    ("token", "dropped"),
    [("ghs_1", 1), ("ghs_2", 2), ("ghs_", None), ("ghs_11", None), ("", None), ("ghs_\udcff", None), ("ghs_é", None)],
)
def test_only_the_exact_token_drops_its_lease(token: str, dropped: int | None) -> None:
    held = book(lease(1), lease(2, name="two"))

    gone = held.drop_token(token)

    assert (gone and gone.id) == (f"l{dropped}" if dropped else None)
    assert len(list(held.live(0))) == (1 if dropped else 2)


def test_dead_leases_are_forgotten_when_the_living_are_counted() -> None:
    held = book(lease(1, ends=10), lease(2, ends=11, name="two"))

    assert list(held.live(10)) == [lease(2, ends=11, name="two")]
    assert held.find(scope(), 0) is None


def test_a_token_is_named_as_in_githubs_audit_log_and_never_shown() -> None:
    assert token_sha256("ghs_1") == base64.b64encode(hashlib.sha256(b"ghs_1").digest()).decode()
    assert "ghs_1" not in repr(lease())


def test_the_names_that_github_did_not_tell_are_known_as_long_as_a_lease_of_the_scope_is_held() -> None:
    held = book(lease(1, ends=10.0), lease(2))
    for name in ("One", "former"):
        held.note_name(lease(2), Repository("Acme", name))
    held.note_name(lease(2), Repository("other", "one"))

    assert set(held.old_names(lease(1))) == {Repository("Acme", "former"), Repository("other", "one")}
    assert list(held.live(20.0)) == [lease(2)]
    assert len(held.old_names(lease(2))) == 2
    held.drop("l2")
    assert not held.old_names(lease(2))


def test_what_reaches_all_of_an_owner_reaches_any_name_of_it() -> None:
    everything = replace(lease(), repositories=None)

    assert everything.reaches(Repository("ACME", "any"))
    assert not everything.reaches(Repository("other", "any"))
