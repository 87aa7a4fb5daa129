"""Grants as rules, and that no token is ever for two of them: a broker, a scripted GitHub, and a clock that is set."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import GRANTED, FakeClock, ScriptedIssuer, make_app, make_installation
from fakes_process import soon
from hypothesis import given, settings
from hypothesis import strategies as st

from ghapp.broker import Broker
from ghapp.credential import Credential, Query, Repository
from ghapp.errors import GhappError, GrantEnded, NotInstalled, OutsideGrant, PermissionMissing, RateLimited, UsageError
from ghapp.grant import (
    MAX_LIFE,
    MAX_REPOSITORIES,
    MAX_UIDS,
    Grant,
    checked_life,
    checked_name,
    checked_permissions,
    checked_uids,
    grant_from_json,
    patterns_of,
)
from ghapp.installation import highest, lesser
from ghapp.restraint import MINTS_OF_A_GRANT


ROCKET, PROBE = Repository("acme", "rocket"), Repository("acme", "probe")
LIMIT = (("contents", "write"), ("workflows", "write"))


def make_grant(*repositories: str, name: str = "one", **changes: object) -> Grant:
    fields: dict[str, Any] = {"host": "github.com", "permissions": LIMIT, "ends": 2e9} | changes
    return Grant(name, f"id-of-{name}", repositories=patterns_of(list(repositories or ("acme/rocket",))), **fields)


def ask(repository: Repository | None = ROCKET, host: str = "github.com", **changes: Any) -> Query:
    return Query(host, repository, **changes)


class World:
    """One app on acme with rocket and probe, and a broker."""

    def __init__(self, *names: str) -> None:
        self.clock = FakeClock()
        self.issuer = ScriptedIssuer(make_app(), self.clock)
        self.issuer.install(*(names or ("rocket", "probe")))
        self.broker = Broker(self.clock)
        self.broker.configure([self.issuer], probe=False)

    def lend(self, *repositories: str, name: str = "one", **changes: object) -> Grant:
        grant = make_grant(*repositories, name=name, **changes)
        self.broker.open_grant(grant.key)
        return grant

    async def fill(self, grant: Grant | None = None, repository: Repository = ROCKET, **changes: Any) -> Credential:
        found = await self.broker.fill(ask(repository, **changes), grant)
        assert found is not None
        return found


# -- rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "repository"),
    [
        (["acme/rocket"], ROCKET),
        (["Acme/Rocket"], Repository("ACME", "rocket")),
        (["acme/*"], PROBE),
        (["ACME/*"], PROBE),
        (["other/x", "acme/*"], PROBE),
    ],
)
def test_what_was_named_is_in_the_grant_in_any_case(names: list[str], repository: Repository) -> None:
    assert make_grant(*names).repository_of(ask(repository)) == repository


@pytest.mark.parametrize(
    ("names", "repository", "host"),
    [
        (["acme/rocket"], PROBE, "github.com"),
        (["acme/rocket"], ROCKET, "github.example"),
        (["acme/rocket"], None, "github.example"),
        (["acme/*"], Repository("acme2", "rocket"), "github.com"),
        (["acme/*"], None, "github.com"),
        (["acme/rocket", "acme/probe"], None, "github.com"),
    ],
)
def test_nothing_else_is(names: list[str], repository: Repository | None, host: str) -> None:
    with pytest.raises(OutsideGrant, match="one"):
        make_grant(*names).repository_of(ask(repository, host))


def test_where_git_says_no_repository_a_grant_of_one_leaves_nothing_to_choose() -> None:
    assert make_grant("acme/rocket").repository_of(ask(None)) == ROCKET


def test_what_left_its_owner_is_not_among_all_of_the_owners() -> None:
    make_grant("acme/*").check_place(ROCKET, "Acme")
    make_grant("acme/rocket").check_place(ROCKET, "elsewhere")

    with pytest.raises(OutsideGrant, match="belongs to elsewhere now"):
        make_grant("acme/*").check_place(ROCKET, "elsewhere")


def test_a_token_has_no_more_than_the_grant_and_no_more_than_git_wants() -> None:
    assert make_grant().allowed((("contents", "read"),)) == (("contents", "read"),)
    assert make_grant(permissions=(("contents", "read"),)).allowed(LIMIT) == (("contents", "read"),)
    named = make_grant(permissions=(("contents", "read"), ("issues", "write")), exact=True)
    assert named.allowed(LIMIT) == named.permissions
    with pytest.raises(OutsideGrant, match="does not include contents"):
        make_grant(permissions=(("issues", "read"),)).allowed(LIMIT)


@given(st.lists(st.sampled_from(["acme/rocket", "acme/*", "Acme/Probe", "o.t-h_er/x.y"]), min_size=1), st.booleans())
def test_a_definition_comes_back_as_it_was(names: list[str], flag: bool) -> None:  # noqa: FBT001  # Hypothesis'
    grant = make_grant(*names, uids=(0, 1000), exact=flag, read_only=not flag)

    assert grant_from_json(grant.to_json()) == grant


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": 1},
        {"id": None},
        {"host": 3},
        {"ends": None},
        {"ends": True},
        {"ends": "9"},
        {"permissions": {}},
        {"permissions": {"contents": "everything"}},
        {"permissions": []},
        {"repositories": []},
        {"repositories": ["*/*"]},
        {"repositories": "acme/rocket"},
        {"exact": 1},
        {"read_only": None},
        {"uids": [-1]},
        {"uids": ["0"]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_definition_that_somebody_changed_is_no_grant(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="definition"):
        grant_from_json(make_grant().to_json() | change)


def test_a_definition_that_is_no_object_is_no_grant() -> None:
    with pytest.raises(ValueError, match="definition"):
        grant_from_json(["acme/rocket"])


@pytest.mark.parametrize(
    "check",
    [
        lambda: patterns_of([]),
        lambda: patterns_of(["acme"]),
        lambda: patterns_of(["*/rocket"]),
        lambda: patterns_of(["../*"]),
        lambda: patterns_of([7]),
        lambda: patterns_of([f"acme/{number}" for number in range(MAX_REPOSITORIES + 1)]),
        lambda: checked_name(""),
        lambda: checked_name(".hidden"),
        lambda: checked_name("a/b"),
        lambda: checked_name("a" * 65),
        lambda: checked_name("a\n"),
        lambda: checked_uids([True]),
        lambda: checked_uids(list(range(MAX_UIDS + 1))),
        lambda: checked_permissions({"issues": "write"}, for_git=True),
        lambda: checked_life(0),
        lambda: checked_life(MAX_LIFE + 1),
        lambda: checked_life(float("nan")),
    ],
)
def test_what_makes_no_sense_is_refused(check: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        check()


def test_what_makes_sense_becomes_a_value() -> None:
    assert patterns_of(["acme/rocket", "ACME/rocket", "acme/*"]) == (ROCKET, Repository("acme", "*"))
    assert checked_uids([1, 0, 1]) == (1, 0)
    assert checked_permissions({}, for_git=True) is None
    assert checked_permissions({"issues": "read"}, for_git=False) == (("issues", "read"),)
    assert checked_life(1.0) == 1.0
    assert highest(["read", "admin", "write"]) == "admin"
    assert lesser((("a", "admin"), ("b", "read")), (("a", "write"), ("c", "read"))) == (("a", "write"),)


# -- tokens of its own -------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from([None, "one", "two", "all"]),
        st.sampled_from([ROCKET, PROBE]),
        st.sampled_from(["fill", "fill with a state", "erase", "pass time", "close and lend anew"]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(steps)
def test_two_grants_and_git_sock_never_share_a_token(
    taken: list[tuple[str | None, Repository, str]],
) -> None:
    """Whatever is asked, in any order, with anybody's state and anybody's password in the request."""
    asyncio.run(_never_share(taken))


async def _never_share(taken: list[tuple[str | None, Repository, str]]) -> None:
    world = World()
    names = {"one": ("acme/rocket", "acme/probe"), "two": ("acme/rocket", "acme/probe"), "all": ("acme/*",)}
    serial = dict.fromkeys(names, 0)
    lent = {name: world.lend(*repositories, name=f"{name}0") for name, repositories in names.items()}
    owner_of: dict[str, str] = {}  # token -> who was handed it
    handed: list[Credential] = []
    for who, repository, what in taken:
        grant = lent[who] if who else None
        key = grant.key if grant else "git.sock"
        try:
            if what.startswith("fill"):
                rejected = handed[len(handed) // 2].lease if "state" in what and handed else ""
                before = {lease.token for lease, _ in world.broker.leases()}
                found = await world.fill(grant, repository, rejected=rejected, comes_back=bool(rejected))
                assert owner_of.setdefault(found.token, key) == key
                lost = before - {lease.token for lease, _ in world.broker.leases()}
                assert {owner_of[token] for token in lost} <= {key}
                handed.append(found)
            elif what == "erase" and handed:
                token = handed[-1].token
                mine = owner_of[token] == key
                known = token in {lease.token for lease, _ in world.broker.leases()}
                assert world.broker.erase(token, grant.key if grant else "") is (mine and known)
            elif what == "pass time":
                world.clock.advance(400)
            elif who is not None and grant is not None:
                await world.broker.close_grant(grant.key)
                assert not [lease for lease, _ in world.broker.leases() if lease.scope.grant == grant.key]
                serial[who] += 1
                lent[who] = world.lend(*names[who], name=f"{who}{serial[who]}")
        except RateLimited:
            world.clock.advance(60)


async def test_one_token_is_for_one_repository_whatever_the_app_is_configured_for() -> None:
    world = World()
    world.issuer.app = make_app(whole_installation=True)
    world.broker.configure([world.issuer], probe=False)

    await world.fill(world.lend("acme/*"))

    ((lease, _),) = world.broker.leases()
    assert lease.scope.repositories == ("rocket",)


async def test_a_state_of_another_drops_nothing_and_is_never_answered_with_another_try() -> None:
    world = World()
    one, two = world.lend(name="one"), world.lend(name="two")
    first, other, plain = await world.fill(one), await world.fill(two), await world.fill()

    assert (await world.fill(two, rejected=first.lease, comes_back=True)).token == other.token
    assert (await world.fill(rejected=first.lease, comes_back=True)).token == plain.token
    assert (await world.fill(one)).token == first.token
    assert (await world.fill(one, rejected=first.lease, comes_back=True)).token != first.token


async def test_who_has_one_token_for_all_is_served_by_it() -> None:
    world = World()
    grant = world.lend("acme/rocket", "acme/probe", permissions=GRANTED, exact=True, together=True)
    lease = await world.broker.token("github.com", [ROCKET, PROBE], None, grant=grant.key)

    assert (await world.fill(grant)).token == lease.token
    assert (await world.fill(grant, PROBE)).token == lease.token
    assert world.issuer.minted == 1


async def test_a_grant_that_is_closed_mints_no_more_and_its_tokens_are_ended() -> None:
    world = World()
    grant, other = world.lend(), world.lend(name="two")
    mine, theirs = await world.fill(grant), await world.fill(other)

    assert await world.broker.close_grant(grant.key) == (1, 0)

    assert world.issuer.revoked == [mine.token]
    with pytest.raises(GrantEnded, match="grant one has ended"):
        await world.fill(grant)
    assert (await world.fill(other)).token == theirs.token


async def test_a_token_that_is_minted_while_its_grant_ends_is_ended_too() -> None:
    world = World()
    grant = world.lend()
    await world.fill(world.lend(name="two"))  # the way is known: what is held up is the mint
    world.issuer.hold = asyncio.Event()
    filling = asyncio.create_task(world.fill(grant))
    await soon(lambda: world.issuer.count("create_token") == 2)

    closing = asyncio.create_task(world.broker.close_grant(grant.key))
    await soon(lambda: grant.key not in world.broker._minting._grants)
    world.issuer.hold.set()

    with pytest.raises(GrantEnded):
        await filling
    assert await closing == (1, 0)
    assert len(world.issuer.revoked) == 1
    assert len(world.broker.leases()) == 1


async def test_what_is_not_there_and_what_is_suspended_is_said() -> None:
    world = World()
    with pytest.raises(NotInstalled):
        await world.fill(world.lend("elsewhere/x"), Repository("elsewhere", "x"))
    world.issuer.install("rocket", suspended=True)
    with pytest.raises(GhappError, match="suspended"):
        await world.fill(world.lend(name="two"))


async def test_another_username_is_refused_on_a_grant_too() -> None:
    world = World()

    with pytest.raises(GhappError, match="another username"):
        await world.fill(world.lend(), our_username=False)


@pytest.mark.parametrize("names", [["acme/*"], ["acme/*", "acme/left"]], ids=len)
async def test_what_was_transferred_is_lent_only_where_it_was_named(names: list[str]) -> None:
    world = World()
    world.issuer.install("x", number=9, owner="elsewhere")
    world.issuer.moved["acme/left"] = ("elsewhere", 4711)
    grant, left = world.lend(*names), Repository("acme", "left")

    if "acme/left" in names:
        assert (await world.fill(grant, left)).token
    else:
        with pytest.raises(OutsideGrant, match="acme/left belongs to elsewhere now"):
            await world.fill(grant, left)
        assert world.issuer.minted == 0


async def test_a_permission_that_was_taken_away_since_is_named() -> None:
    world = World()
    grant = world.lend(permissions=(("contents", "write"), ("issues", "write")), exact=True)
    world.issuer.install("rocket", permissions=(("contents", "write"),))

    with pytest.raises(PermissionMissing, match="issues: write"):
        await world.fill(grant)


async def test_a_grant_mints_thirty_times_a_minute_and_the_others_go_on() -> None:
    names = [f"r{number}" for number in range(MINTS_OF_A_GRANT + 1)]
    world = World(*names)
    grant = world.lend("acme/*")
    for name in names[:-1]:
        await world.fill(grant, Repository("acme", name))

    with pytest.raises(RateLimited):
        await world.fill(grant, Repository("acme", names[-1]))
    await world.fill(None, Repository("acme", names[-1]))
    await world.fill(grant, Repository("acme", names[0]))  # what it has it keeps

    world.clock.advance(61)
    await world.fill(grant, Repository("acme", names[-1]))
    assert world.issuer.minted == MINTS_OF_A_GRANT + 2


async def test_names_that_somebody_invents_cost_no_more_than_thirty_calls_of_a_kind_a_minute() -> None:
    world = World()
    grant = world.lend("acme/*")
    for number in range(MINTS_OF_A_GRANT + 20):
        with pytest.raises(GhappError):
            await world.fill(grant, Repository("acme", f"invented-{number}"))

    assert 10 < world.issuer.count("find_by_repository") <= MINTS_OF_A_GRANT
    assert 10 < world.issuer.count("create_token") <= MINTS_OF_A_GRANT


async def test_what_is_outside_of_a_grant_costs_nothing_and_is_not_remembered() -> None:
    world = World()
    with pytest.raises(OutsideGrant):
        await world.fill(world.lend("acme/rocket"), PROBE)
    assert world.issuer.calls == []


# -- what can be lent --------------------------------------------------------------------------------------------


async def lendable(world: World, *names: str, permissions: object = None, read_only: bool = False) -> Any:
    return await world.broker.lendable("github.com", patterns_of(list(names)), permissions, read_only=read_only)  # type: ignore[arg-type]  # a test's shorthand


async def test_what_a_grant_will_be_able_to_do_is_known_before_it_is_made() -> None:
    world = World()
    assert await lendable(world, "acme/rocket", "acme/*") == LIMIT
    assert await lendable(world, "acme/rocket", read_only=True) == (("contents", "read"),)
    assert await lendable(world, "acme/rocket", permissions=(("issues", "read"),)) == (("issues", "read"),)
    assert world.issuer.minted == 0


async def test_of_several_owners_the_most_is_told() -> None:
    world = World()
    world.issuer.install("x", number=8, owner="less", permissions=(("contents", "read"),))

    assert await lendable(world, "less/x", "acme/rocket") == LIMIT


@pytest.mark.parametrize("name", ["elsewhere/x", "elsewhere/*", "acme/typo"])
async def test_what_cannot_be_reached_cannot_be_lent(name: str) -> None:
    with pytest.raises(GhappError, match=r"installed on (acme|elsewhere)"):
        await lendable(World(), "acme/rocket", name)


async def test_a_permission_that_is_not_granted_and_a_suspended_installation_cannot_be_lent() -> None:
    world = World()
    with pytest.raises(PermissionMissing):
        await lendable(world, "acme/rocket", permissions=(("administration", "write"),))
    world.issuer.installations["acme"] = make_installation(suspended=True)
    with pytest.raises(GhappError, match="suspended"):
        await lendable(world, "acme/*")


async def test_an_app_that_is_not_for_an_owner_is_passed_over() -> None:
    world = World()
    narrow = ScriptedIssuer(make_app("narrow", owners=("other",)), world.clock)
    world.broker.configure([narrow, world.issuer], probe=False)

    assert await lendable(world, "acme/*") == LIMIT
    assert narrow.calls == []
