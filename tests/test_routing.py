"""What is believed of owners and repositories, and for how long."""

import pytest
from fakes import make_app, make_installation

from ghapp.credential import Repository
from ghapp.installation import Installation
from ghapp.routing import MAX_NEGATIVE, App, Place, Routes, Unreachable


APP = make_app()
ONE, TWO = Repository("acme", "one"), Repository("acme", "two")
HERE = make_installation()
AWAY = make_installation(suspended=True)


def routes() -> Routes:
    return Routes()


@pytest.mark.parametrize(
    ("owners", "host", "owner", "expected"),
    [
        ((), "github.com", "anybody", True),
        ((), "ghe.example", "anybody", False),
        (("Acme",), "github.com", "aCME", True),
        (("acme", "other"), "github.com", "Other", True),
        (("acme",), "github.com", "acme2", False),
    ],
)
def test_an_app_serves_its_host_and_the_owners_it_was_given(
    owners: tuple[str, ...], host: str, owner: str, *, expected: bool
) -> None:
    assert make_app(owners=owners).serves(host, owner) is expected


@pytest.mark.parametrize(
    ("installation", "now", "expected"),
    [
        (HERE, 0, Place(HERE, "one")),
        (HERE, 3599, Place(HERE, "one")),
        (HERE, 3600, None),
        (AWAY, 59, Place(AWAY, "one")),
        (AWAY, 60, None),
        (None, 59, Unreachable.ABSENT),
        (None, 60, None),
    ],
)
def test_an_owner_is_believed_for_a_while(
    installation: Installation | None, now: float, expected: Place | Unreachable | None
) -> None:
    known = routes()
    known.learn_owner(APP, "ACME", installation, 0)

    assert known.find(APP, Repository("Acme", "ONE"), now) == expected


@pytest.mark.parametrize(("installation", "until"), [(HERE, 3600), (AWAY, 60)])
def test_a_renamed_repository_is_believed_for_a_while_by_its_id(installation: Installation, until: float) -> None:
    known = routes()
    known.learn(APP, ONE, Place(installation, 900), 0)

    assert known.find(APP, Repository("ACME", "One"), until - 1) == Place(installation, 900)
    assert known.find(APP, ONE, until) is None
    assert known.find(APP, TWO, 0) is None


def test_a_repository_found_by_name_speaks_for_its_owner() -> None:
    known = routes()
    known.learn(APP, ONE, Place(HERE, "one"), 0)

    assert known.find(APP, TWO, 0) == Place(HERE, "two")
    assert known.installation_on(APP, "ACME") == HERE
    assert known.installation_on(APP, "other") is None
    assert known.installations() == [("acme-bot", HERE)]


def test_a_repository_that_is_not_selected_is_believed_for_thirty_seconds() -> None:
    known = routes()
    known.learn_owner(APP, "acme", HERE, 0)
    known.learn_unselected(APP, ONE, 0)

    assert known.find(APP, ONE, 29) is Unreachable.UNSELECTED
    assert known.find(APP, ONE, 30) == Place(HERE, "one")
    assert known.find(APP, TWO, 0) == Place(HERE, "two")


def test_apps_do_not_share_what_they_know() -> None:
    known = routes()
    known.learn_owner(APP, "acme", HERE, 0)

    assert known.find(make_app("other"), ONE, 0) is None


def test_what_is_forgotten_has_to_be_asked() -> None:
    known = routes()
    known.learn(APP, ONE, Place(HERE, 900), 0)
    known.learn_owner(APP, "acme", HERE, 0)
    known.learn_unselected(APP, ONE, 0)

    known.forget(APP, ONE)
    known.forget(APP, ONE)

    assert known.find(APP, ONE, 0) is None


def test_absences_can_be_forgotten_alone() -> None:
    known = routes()
    known.learn_owner(APP, "acme", HERE, 0)
    known.learn_owner(APP, "nobody", None, 0)
    known.learn_unselected(APP, ONE, 0)

    known.forget_absences()

    assert known.find(APP, ONE, 0) == Place(HERE, "one")
    assert known.find(APP, Repository("nobody", "x"), 0) is None


@pytest.mark.parametrize(
    ("place", "old"),
    [
        (Place(HERE, "one"), Place(HERE, "one", old=True)),
        (Place(HERE, 900), Place(HERE, 900, old=True)),
        (Place(AWAY, "one"), Unreachable.ABSENT),
        (Place(AWAY, 900), Unreachable.ABSENT),
        (None, None),
    ],
)
def test_what_was_last_known_is_known_to_be_old(place: Place | None, old: Place | Unreachable | None) -> None:
    known = routes()
    if place:
        known.learn(APP, ONE, place, 0)

    assert known.find(APP, ONE, 9_000) is None
    assert known.find_last(APP, Repository("ACME", "One")) == old


def test_that_there_were_no_tokens_is_known_for_as_long() -> None:
    known = routes()
    known.learn_owner(APP, "nobody", None, 0)
    known.learn_owner(APP, "acme", HERE, 0)
    known.learn_unselected(APP, ONE, 0)

    assert known.find_last(APP, Repository("nobody", "x")) is Unreachable.ABSENT
    assert known.find_last(APP, ONE) is Unreachable.UNSELECTED
    assert known.find(APP, ONE, 30) == Place(HERE, "one")  # to mint is to ask
    known.learn(APP, ONE, Place(HERE, "one"), 30)
    assert known.find_last(APP, ONE) == Place(HERE, "one", old=True)


def test_what_is_said_of_a_repository_that_moved_says_nothing_of_its_former_owner() -> None:
    known = routes()
    known.learn_owner(APP, "acme", HERE, 0)

    known.learn(APP, ONE, Place(AWAY, 900), 1)

    assert known.find(APP, ONE, 2) == Place(AWAY, 900)
    assert known.find(APP, Repository("acme", "two"), 2) == Place(HERE, "two")


@pytest.mark.parametrize("place", [Place(HERE, "one"), Place(HERE, 900)])
def test_a_failed_look_up_is_remembered_for_a_minute_or_until_one_succeeds(place: Place) -> None:
    known = routes()
    assert not known.failed_within(60, APP, ONE, 9_000)

    known.learn_failure(APP, Repository("ACME", "One"), 9_000)

    assert known.failed_within(60, APP, ONE, 9_059)
    assert not known.failed_within(60, APP, ONE, 9_060)
    assert not known.failed_within(60, APP, Repository("acme", "two"), 9_000)
    assert not known.failed_within(60, make_app("other"), ONE, 9_000)
    known.learn(APP, ONE, place, 9_010)
    assert not known.failed_within(60, APP, ONE, 9_010)


def test_the_list_of_installations_is_believed_for_a_minute() -> None:
    known = routes()
    assert (known.find_all(APP, 0), known.prolong_all(APP, 0)) == (None, False)

    known.learn_all(APP, [HERE], 0)

    assert (known.find_all(APP, 59), known.find_all(APP, 60)) == ((HERE,), None)
    assert known.prolong_all(APP, 100)
    assert known.find_all(APP, 159) == (HERE,)
    known.forget_all(APP)
    known.forget_all(APP)
    assert known.find_all(APP, 100) is None


def test_what_strangers_can_make_us_remember_is_bounded() -> None:
    known = routes()
    for number in range(MAX_NEGATIVE + 10):
        known.learn_owner(APP, f"owner{number}", None, 0)
        known.learn_unselected(APP, Repository("acme", f"r{number}"), 0)
        known.learn_failure(APP, Repository("acme", f"r{number}"), 0)

    assert (len(known._owners), len(known._unselected)) == (MAX_NEGATIVE, MAX_NEGATIVE)
    assert len(known._failures) == MAX_NEGATIVE
    assert known.find(APP, Repository("owner0", "x"), 0) is None
    assert known.find(APP, Repository(f"owner{MAX_NEGATIVE}", "x"), 0) is Unreachable.ABSENT


def test_an_app_is_a_value_that_can_be_a_key() -> None:
    assert {APP: 1}[make_app()] == 1
    assert isinstance(APP, App)
