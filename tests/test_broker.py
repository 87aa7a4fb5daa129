"""The broker's rules, with a clock that is set and a GitHub that is scripted."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeClock, ScriptedIssuer, make_app, make_installation

from ghapp.broker import WORK_BUDGET, Broker
from ghapp.credential import Credential, Query, Repository
from ghapp.errors import (
    AppRejected,
    BadAnswer,
    ClockRejected,
    Declined,
    Failed,
    Forbidden,
    ForeignUser,
    GhappError,
    GitHubFailing,
    KeyUnavailable,
    Locked,
    NetworkFailed,
    NotInstalled,
    NotSelected,
    PathMissing,
    PermissionMissing,
    RateLimited,
    Suspended,
    UsageError,
)
from ghapp.grant import ANY, Grant
from ghapp.installation import ALL, Scope
from ghapp.lease import Lease
from ghapp.minting import SPARE, Order
from ghapp.restraint import Restraint


ONE = Repository("acme", "one")
PAGE = "https://github.com/organizations/acme/settings/installations/7"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def issuer(clock: FakeClock) -> ScriptedIssuer:
    """An app on acme, for the repositories one and two."""
    issuer = ScriptedIssuer(make_app(), clock)
    issuer.install("one", "two")
    return issuer


@pytest.fixture
def broker(clock: FakeClock, issuer: ScriptedIssuer) -> Broker:
    return serve(clock, issuer)


def serve(clock: FakeClock, *issuers: ScriptedIssuer) -> Broker:
    broker = Broker(clock)
    broker.configure(issuers)
    return broker


def ask(name: str = "one", owner: str = "acme", **changes: object) -> Query:
    return Query("github.com", Repository(owner, name), **changes)  # type: ignore[arg-type]  # a test's shorthand


async def filled(broker: Broker, query: Query | None = None) -> Credential:
    credential = await broker.fill(query or ask())
    assert credential is not None
    return credential


async def settled(broker: Broker, *, seconds: float = 0.0) -> None:
    """Wait until no work is under way, and at least that long for a timer that must do nothing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()
    while broker._flights._flights:
        await asyncio.gather(*broker._flights._flights.values(), return_exceptions=True)
        await settled_turn()  # the callbacks that end a flight run after its end


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await settled_turn()


async def settled_turn() -> None:
    """Let timers and tasks have their turn."""
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.005, turn.set_result, None)
    await turn


async def refused(broker: Broker, query: Query | None = None) -> GhappError:
    with pytest.raises(GhappError) as caught:
        await broker.fill(query or ask())
    return caught.value


# -- one call for many ---------------------------------------------------------------------------------------------


async def test_fifty_simultaneous_fills_cost_one_look_up_and_one_mint(broker: Broker, issuer: ScriptedIssuer) -> None:
    found = await asyncio.gather(*(filled(broker) for _ in range(50)))

    assert len({credential.token for credential in found}) == 1
    assert [name for name, _ in issuer.calls] == ["find_by_repository", "create_token"]
    assert (broker.mints, broker.leases()[0][1]) == (1, 50)


async def test_fifty_fills_of_one_owner_share_the_look_up_and_not_the_token(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    issuer.install(*(f"r{number}" for number in range(50)))

    found = await asyncio.gather(*(filled(broker, ask(f"r{number}")) for number in range(50)))

    assert len({credential.token for credential in found}) == 50
    assert (issuer.count("find_by_repository"), issuer.count("create_token")) == (1, 50)


async def test_a_cancelled_caller_cancels_nobody_else(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.hold = asyncio.Event()
    callers = [asyncio.create_task(filled(broker)) for _ in range(3)]
    await issuer.called.wait()

    callers[0].cancel()
    await asyncio.wait({callers[0]})
    issuer.hold.set()
    results = await asyncio.gather(*callers, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], Credential)
    assert results[1] == results[2]
    assert issuer.count("create_token") == 1


async def test_work_goes_on_when_the_only_caller_is_gone(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.hold = asyncio.Event()
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]
    caller = asyncio.create_task(broker.fill(ask()))
    await issuer.called.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)

    issuer.hold.set()
    await settled(broker)

    assert issuer.errors["find_by_repository"] == []  # and no "exception was never retrieved"


async def test_waiters_share_a_failure_too(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]

    results = await asyncio.gather(*(broker.fill(ask()) for _ in range(50)), return_exceptions=True)

    assert {type(result) for result in results} == {NetworkFailed}
    assert len(issuer.calls) == 1


async def test_a_failure_is_remembered_for_three_seconds_and_no_longer(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.errors["find_by_repository"] = [GitHubFailing("HTTP 502")]

    assert isinstance(await refused(broker), GitHubFailing)
    clock.advance(2.9)
    assert isinstance(await refused(broker), GitHubFailing)
    clock.advance(0.2)

    assert (await filled(broker)).token.startswith("ghs_")
    assert issuer.count("find_by_repository") == 2


async def test_a_remembered_error_keeps_no_frames_because_they_hold_tokens(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    issuer.errors["create_token"] = [GitHubFailing("HTTP 502")]
    error = await refused(broker)
    names = []
    traceback = error.__traceback__
    while traceback:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next

    assert "_mint" not in names
    assert "create_token" not in names


# -- what a credential is ------------------------------------------------------------------------------------------


async def test_the_expiry_is_in_the_local_clock_whatever_that_says(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.life = 3600.0
    await filled(broker)
    clock.advance(600)
    clock.wall_time -= 7200  # somebody sets the clock back by two hours

    credential = await filled(broker)

    assert credential.expires_at == int(clock.wall_time + 3000)
    assert issuer.count("create_token") == 1


async def test_a_token_is_for_one_repository_and_what_git_needs(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker, ask("ONE", "ACME"))

    assert issuer.calls[-1] == (
        "create_token",
        Scope(
            api="https://api.github.com",
            issuer="Iv23li-acme-bot",
            key="SHA256:one",
            installation=issuer.installations["acme"].id,
            repositories=("one",),
            permissions=(("contents", "write"), ("workflows", "write")),
        ),
    )


async def test_an_app_for_whole_installations_gets_one_token_for_all(clock: FakeClock) -> None:
    issuer = ScriptedIssuer(make_app(whole_installation=True), clock)
    issuer.install("one", "two")
    broker = serve(clock, issuer)

    first, second = await filled(broker), await filled(broker, ask("two"))

    assert first == second
    assert broker.leases()[0][0].scope.repositories is ALL
    assert broker.leases()[0][0].repositories is None
    assert broker.hits == 1


async def test_a_lease_is_served_alone_until_ten_minutes_before_its_end(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)

    clock.advance(3600 - 600)

    assert (await filled(broker)).token == first.token
    await settled(broker)
    assert issuer.count("create_token") == 1


async def test_near_its_end_a_lease_is_served_at_once_until_its_successor_is_proven(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)
    clock.advance(3600 - 599)
    issuer.hold = asyncio.Event()

    while_it_is_minted = [await filled(broker) for _ in range(100)]
    issuer.hold.set()
    await settled(broker)
    after = await filled(broker)

    assert {credential.token for credential in while_it_is_minted} == {first.token}
    assert after.token != first.token
    assert issuer.count("create_token") == 2
    assert len(broker.leases()) == 2  # the old one lives on: commands may be using it


async def test_within_five_minutes_of_its_end_a_lease_is_not_served_while_minting_works(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)

    clock.advance(3600 - 299)

    assert (await filled(broker)).token != first.token
    assert issuer.count("create_token") == 2


async def test_a_lease_in_use_is_renewed_by_a_timer_and_an_unused_one_is_not(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.life = 600.05  # renewal is due 50 ms from now, in the timer's clock
    used = await filled(broker)
    clock.advance(0.06)
    await eventually(lambda: len(broker.leases()) == 2)
    assert (await filled(broker)).token != used.token

    lazy = serve(clock, idle := ScriptedIssuer(make_app(), clock, life=600.05))
    idle.install("one")
    await filled(lazy)
    clock.advance(31 * 60)
    await settled(lazy, seconds=0.15)
    assert idle.count("create_token") == 1


async def test_the_last_minutes_of_a_lease_are_served_at_once_when_the_renewal_has_failed(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)
    clock.advance(3600 - 200)
    issuer.errors["create_token"] = [NetworkFailed("no route")] * 10
    await filled(broker)
    issuer.hold = asyncio.Event()  # GitHub does not even answer

    assert (await filled(broker)).token == first.token

    issuer.hold.set()
    await settled(broker)


async def test_the_last_minutes_of_a_lease_are_served_at_once_when_the_renewal_brought_a_wider_token(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)
    clock.advance(3600 - 200)
    issuer.edit = lambda issued: replace(issued, repository_selection="all")
    await filled(broker)
    issuer.hold = asyncio.Event()  # GitHub does not even answer

    assert (await filled(broker)).token == first.token

    issuer.hold.set()
    await settled(broker)


async def test_beyond_six_wider_tokens_a_minute_it_is_still_said_what_is_wrong_with_them(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.edit = lambda issued: replace(issued, repository_selection="all")
    for _ in range(8):
        assert "another token than was asked for" in (await refused(broker)).message
        clock.advance(4)

    assert issuer.count("create_token") == 6


@pytest.mark.parametrize(
    ("changes", "key", "leases"),
    [
        ({}, "SHA256:one", 2),
        ({"keys": ("file:/other.pem", "file:/key.pem")}, "SHA256:one", 2),
        ({}, "SHA256:other", 1),
        ({"permissions": (("contents", "read"),)}, "SHA256:one", 1),
    ],
    ids=["the same", "a key more", "another key", "narrower"],
)
async def test_a_lease_in_use_is_renewed_by_its_timer_after_a_new_configuration_that_still_wants_it(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock, *, changes: dict[str, object], key: str, leases: int
) -> None:
    issuer.life = 600.05
    await filled(broker)
    issuer.life = 3600

    fresh = replace(issuer, app=replace(issuer.app, **changes), key=key, calls=[])  # type: ignore[arg-type]  # as above
    broker.configure([fresh])
    clock.advance(0.06)
    if leases > 1:
        await eventually(lambda: len(broker.leases()) == leases)
    await settled(broker, seconds=0.15)

    assert len(broker.leases()) == leases
    assert fresh.count("create_token") == leases - 1


# -- the git servers know a token later than the API ---------------------------------------------------------------


async def test_a_new_token_is_handed_out_when_the_git_server_knows_it(issuer: ScriptedIssuer, clock: FakeClock) -> None:
    issuer.lag = 3
    broker = Broker(clock, probe_pauses=[0.0] * 6)
    broker.configure([issuer])

    await filled(broker)
    await filled(broker)

    assert (issuer.looks, issuer.approached) == (4, 1)
    assert issuer.count("create_token") == 1


async def test_a_probe_that_runs_out_ends_and_is_not_tried_again_for_ten_minutes(
    issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.lag = 1_000_000
    broker = Broker(clock, probe_pauses=[0.0, 0.0])
    broker.configure([issuer])

    first = await filled(broker)
    broker.erase(first.token)
    second = await filled(broker)
    assert issuer.looks == 2

    broker.erase(second.token)
    clock.advance(601)
    await filled(broker)
    assert issuer.looks == 4


@pytest.mark.parametrize("budgets", [{"probe_budget": 0.05}, {"work_budget": SPARE + 0.05}], ids=str)
async def test_a_git_server_that_never_answers_costs_neither_the_token_nor_more_than_its_time(
    issuer: ScriptedIssuer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, budgets: dict[str, float]
) -> None:
    async def looks_for_ever(repository: Repository, token: str) -> bool:  # noqa: ARG001  # the protocol's
        issuer.looks += 1
        return await asyncio.Event().wait()

    monkeypatch.setattr(issuer, "sees", looks_for_ever)
    broker = Broker(clock, **budgets)  # type: ignore[arg-type]  # a table of fields
    broker.configure([issuer])

    async with asyncio.timeout(5):
        first = await filled(broker)
    broker.erase(first.token)
    await filled(broker)

    assert issuer.count("create_token") == 2
    assert issuer.looks == 1  # for ten minutes


async def test_without_contents_or_by_configuration_nothing_is_probed(issuer: ScriptedIssuer, clock: FakeClock) -> None:
    broker = Broker(clock)
    broker.configure([issuer], probe=False)
    await filled(broker)
    assert issuer.looks == 0

    broker.configure([issuer])
    await broker.token("github.com", [ONE], (("issues", "read"),))
    assert issuer.looks == 0


@pytest.mark.parametrize(("left", "served"), [(299, True), (60, True), (59, False), (-1, False)])
async def test_an_old_lease_is_the_last_resort_when_minting_fails(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock, *, left: float, served: bool
) -> None:
    first = await filled(broker)
    clock.advance(3600 - left)
    issuer.errors["create_token"] = [NetworkFailed("no route")]
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]

    if served:
        assert (await filled(broker)).token == first.token
    else:
        assert isinstance(await refused(broker), NetworkFailed)


async def test_no_lease_is_believed_for_more_than_an_hour_and_five_minutes(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.life = 86_400.0

    credential = await filled(broker)

    assert credential.expires_at == int(clock.wall_time + 65 * 60)


async def test_a_token_that_ends_at_once_is_refused_and_revoked(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.life = 59.0

    error = await refused(broker)

    assert (type(error), error.message) == (
        BadAnswer,
        "GitHub issued another token than was asked for: it ends in 59 s; it was revoked",
    )
    assert len(issuer.revoked) == 1


# -- outages -------------------------------------------------------------------------------------------------------


async def test_a_living_lease_is_served_when_the_route_is_old_and_github_is_away(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await filled(broker, ask("two"))  # the owner is looked up now
    clock.advance(3000)
    first = await filled(broker)
    clock.advance(601)  # the look-up is more than an hour old, the lease is not
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")] * 9

    assert (await filled(broker)).token == first.token
    await settled(broker)
    assert (await filled(broker)).token == first.token
    await settled(broker)
    assert issuer.count("find_by_repository") == 2

    clock.advance(10)
    assert (await filled(broker)).token == first.token
    await settled(broker)
    assert issuer.count("find_by_repository") == 3


async def test_who_has_a_living_lease_does_not_wait_for_the_look_up_of_an_old_route(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await filled(broker, ask("two"))
    clock.advance(3000)
    first = await filled(broker)
    tool = await broker.token("github.com", [ONE], None)
    grant = Grant("g", "1", "github.com", (ONE,), (("contents", "write"),))
    broker.open_grant(grant.key)
    lent = await broker.fill(ask(), grant)
    clock.advance(601)
    issuer.hold = asyncio.Event()  # GitHub says nothing

    async with asyncio.timeout(5):  # of the twelve that a call may take
        assert (await filled(broker)).token == first.token
        assert (await broker.token("github.com", [ONE], None)).id == tool.id
        assert await broker.fill(ask(), grant) == lent
    await settled_turn()
    assert (issuer.count("find_by_repository"), broker.mints) == (2, 4)

    issuer.hold.set()
    await settled(broker)
    await filled(broker)
    assert issuer.count("find_by_repository") == 2  # what came of it is believed


async def test_nothing_is_minted_by_a_route_that_is_too_old(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await filled(broker)
    clock.advance(3601)  # the lease is dead too
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")] * 2

    assert isinstance(await refused(broker), NetworkFailed)
    clock.advance(3)
    assert isinstance(await refused(broker), NetworkFailed)
    assert broker.mints == 1

    clock.advance(3)
    await filled(broker)
    assert [name for name, _ in issuer.calls][-2:] == ["find_by_repository", "create_token"]


async def test_by_an_old_route_a_lease_near_its_end_is_served_only_after_a_look_up_has_failed(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await filled(broker, ask("two"))
    clock.advance(400)
    first = await filled(broker)
    clock.advance(3600 - 200)  # 200 s are left, and the route is older than an hour

    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]
    assert (await filled(broker)).token == first.token
    assert (await filled(broker)).token == first.token
    assert (issuer.count("find_by_repository"), broker.mints) == (2, 2)

    clock.advance(60)
    assert (await filled(broker)).token != first.token
    assert (issuer.count("find_by_repository"), broker.mints) == (3, 3)


async def test_a_lease_near_its_end_goes_soon_after_the_look_ups_of_its_old_route_no_longer_fail(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await filled(broker, ask("two"))
    clock.advance(400)
    first = await filled(broker)
    clock.advance(3600 - 200)  # 200 s are left, and the route is older than an hour
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]
    assert (await filled(broker)).token == first.token

    clock.advance(10)
    assert (await filled(broker)).token == first.token  # without waiting
    await settled(broker)
    assert (issuer.count("find_by_repository"), broker.mints) == (3, 2)

    assert (await filled(broker)).token != first.token


async def test_to_look_up_one_that_was_renamed_leaves_its_neighbours_where_they_are(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    first = await filled(broker)
    issuer.moved["acme/former"] = ("acme", 900)
    await filled(broker, ask("former"))
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")] * 9

    assert (await filled(broker)).token == first.token


@pytest.mark.parametrize("error", [Forbidden("Repository access blocked"), BadAnswer("not JSON")])
async def test_one_repository_that_github_refuses_harms_no_other(
    clock: FakeClock, issuer: ScriptedIssuer, error: Failed
) -> None:
    broker = serve(clock, issuer)
    await filled(broker, ask("two"))
    clock.advance(3601)
    issuer.errors["find_by_repository"] = [error]
    issuer.hold = asyncio.Event()
    blocked = asyncio.create_task(refused(broker, ask("blocked")))
    await eventually(lambda: issuer.count("find_by_repository") == 2)
    asking = asyncio.create_task(filled(broker))
    await settled_turn()
    issuer.hold.set()

    assert await blocked is error
    await asking
    assert issuer.count("find_by_repository") == 3


async def test_a_refusal_in_githubs_own_words_is_not_taken_for_the_apps(clock: FakeClock) -> None:
    issuer = ScriptedIssuer(make_app(), clock)
    issuer.install("one", "blocked")
    issuer.install("lib", owner="beta", number=8)
    issuer.errors["find_by_repository"] = [Forbidden("Repository access blocked")]
    broker = serve(clock, issuer)

    assert isinstance(await refused(broker, ask("blocked")), Forbidden)

    await filled(broker, ask("lib", "beta"))


async def test_a_lease_near_its_end_is_replaced_whatever_becomes_of_the_owners_other_look_ups(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await filled(broker, ask("two"))
    clock.advance(400)
    first = await filled(broker)
    clock.advance(3600 - 290)
    issuer.errors["find_by_repository"] = [Forbidden("Repository access blocked")]
    await refused(broker, ask("blocked"))

    assert (await filled(broker)).token != first.token


async def test_a_lease_that_git_saw_rejected_is_not_served_by_an_old_route(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await filled(broker, ask("two"))
    clock.advance(3000)
    first = await filled(broker)
    clock.advance(601)

    second = await filled(broker, ask(rejected=first.lease))

    assert second.token != first.token
    assert issuer.count("find_by_repository") == 2


async def test_a_look_up_that_runs_out_of_time_is_a_failed_one(clock: FakeClock, issuer: ScriptedIssuer) -> None:
    broker = Broker(clock, work_budget=0.02)
    broker.configure([issuer])
    issuer.life = 3900.0
    first = await filled(broker)
    clock.advance(3610)  # 290 s are left
    issuer.hold = asyncio.Event()

    assert (await filled(broker)).token == first.token
    assert (await filled(broker)).token == first.token
    assert issuer.count("find_by_repository") == 2


@pytest.mark.parametrize("owners", [("acme",), ("ACME", "elsewhere")])
async def test_an_app_narrowed_to_an_owner_has_no_token_for_what_moved_to_another(
    clock: FakeClock, owners: tuple[str, ...]
) -> None:
    issuer = ScriptedIssuer(make_app(owners=owners), clock)
    issuer.install("one")
    issuer.install(number=8, owner="Globex")
    issuer.moved["acme/one"] = ("globex", 900)
    broker = serve(clock, issuer)

    error = await refused(broker)
    with pytest.raises(NotSelected):
        await broker.token("github.com", [ONE], None)
    with pytest.raises(NotSelected):
        await broker.lendable("github.com", [ONE], None, read_only=False)

    assert isinstance(error, NotSelected)
    assert error.message.startswith("acme/one has moved to Globex, and the app acme-bot is only for ")
    assert "config.toml" in error.hint
    assert broker.mints == 0


async def test_what_moved_is_served_by_the_next_app_that_may(clock: FakeClock) -> None:
    narrow, wide = ScriptedIssuer(make_app(owners=("acme",)), clock), ScriptedIssuer(make_app("wide-bot"), clock)
    for issuer in (narrow, wide):
        issuer.install("one")
        issuer.install(number=8, owner="globex")
        issuer.moved["acme/one"] = ("globex", 900)
    broker = serve(clock, narrow, wide)

    await filled(broker)

    assert (narrow.count("create_token"), wide.count("create_token")) == (0, 1)


async def test_an_app_narrowed_to_an_owner_lends_and_lists_nothing_of_another(clock: FakeClock) -> None:
    issuer = ScriptedIssuer(make_app(owners=("acme",)), clock)
    issuer.install("one")
    issuer.installations["acme"] = make_installation(9, "Globex")  # GitHub knows the owner by its old name
    issuer.install(number=8, owner="globex")
    broker = serve(clock, issuer)

    with pytest.raises(NotInstalled):
        await broker.lendable("github.com", [Repository("acme", ANY)], None, read_only=False)
    with pytest.raises(NotInstalled):
        await broker.lease_to_look_around("acme-bot", "globex")
    assert broker.mints == 0


async def test_a_time_that_github_rejects_is_asked_about_once_a_minute(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)  # the key is proven
    issuer.install("one", owner="beta")
    issuer.errors["find_by_repository"] = [ClockRejected("too far")] * 2

    for number in range(12):
        assert isinstance(await refused(broker, ask(owner="beta")), ClockRejected)
        assert isinstance(await refused(broker, ask(owner=f"elsewhere{number}")), ClockRejected)
        assert broker.trouble(issuer.app) == "E21"
        clock.advance(5 - 1e-9)
    assert issuer.count("find_by_repository") == 2
    assert (await filled(broker)).token == first.token

    clock.advance(1)
    assert isinstance(await refused(broker, ask(owner="beta")), ClockRejected)
    assert issuer.count("find_by_repository") == 3
    broker.configure([issuer])  # as a restart does
    await filled(broker, ask(owner="beta"))


async def test_a_moved_repository_is_served_when_the_route_is_old_and_github_is_away(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.moved["acme/old"] = ("acme", 900)
    issuer.life = 3900.0
    first = await filled(broker, ask("old"))
    clock.advance(3600 - 120)
    issuer.life = 3600.0
    broker.erase(first.token)
    second = await filled(broker, ask("old"))
    clock.advance(121)
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]

    assert (await filled(broker, ask("old"))).token == second.token
    await settled(broker)
    assert (issuer.count("find_by_repository"), broker.mints) == (2, 2)


async def test_an_outage_is_told_when_nothing_is_known(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]

    error = await refused(broker)

    assert (type(error), error.stops_git) == (NetworkFailed, True)


async def test_a_fill_ends_in_time_and_a_later_one_starts_anew(clock: FakeClock, issuer: ScriptedIssuer) -> None:
    broker = Broker(clock, work_budget=0.02)  # the work runs out of time first, as it does by our numbers
    broker.configure([issuer])
    issuer.hold = asyncio.Event()

    error = await refused(broker)
    await settled(broker)
    clock.advance(4)
    issuer.hold.set()
    broker._flights.limit = WORK_BUDGET  # the new start is not held to what a loaded machine cannot keep

    assert (type(error), error.message) == (NetworkFailed, "no token within 0 s")
    assert (await filled(broker)).token.startswith("ghs_")
    assert issuer.count("find_by_repository") == 2


async def test_the_budget_holds_where_the_work_goes_on(clock: FakeClock, issuer: ScriptedIssuer) -> None:
    broker = Broker(clock, budget=0.02, work_budget=60)
    broker.configure([issuer])
    issuer.hold = asyncio.Event()

    assert isinstance(await refused(broker), NetworkFailed)
    with pytest.raises(NetworkFailed):
        await broker.token("github.com", [ONE], None)
    issuer.hold.set()


async def test_a_mint_that_hangs_leaves_time_for_the_last_resort(clock: FakeClock, issuer: ScriptedIssuer) -> None:
    broker = Broker(clock, budget=5, work_budget=0.02)
    broker.configure([issuer])
    first = await filled(broker)
    clock.advance(3500)
    issuer.hold = asyncio.Event()

    assert (await filled(broker)).token == first.token


# -- which app -----------------------------------------------------------------------------------------------------


@pytest.fixture
def second(clock: FakeClock) -> ScriptedIssuer:
    second = ScriptedIssuer(make_app("second-bot"), clock)
    second.install("one", number=8)
    return second


async def test_the_first_app_in_order_answers(clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer) -> None:
    broker = serve(clock, issuer, second)

    await filled(broker)

    assert [lease.app for lease, _ in broker.leases()] == ["acme-bot"]
    assert second.calls == []
    assert [app.name for app in broker.apps] == ["acme-bot", "second-bot"]
    assert broker.hosts == {"github.com"}


@pytest.mark.parametrize("why", ["not installed", "not selected", "suspended", "not granted", "gone while minting"])
async def test_the_second_app_answers_when_the_first_cannot(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer, why: str
) -> None:
    match why:
        case "not installed":
            issuer.installations.clear()
        case "not selected":
            issuer.repositories.clear()
        case "suspended":
            issuer.install("one", suspended=True)
        case "not granted":
            issuer.install("one", permissions=(("metadata", "read"),))
        case _:
            issuer.errors["create_token"] = [NotInstalled("gone")] * 2
    broker = serve(clock, issuer, second)

    await filled(broker)

    assert [lease.app for lease, _ in broker.leases()] == ["second-bot"]


@pytest.mark.parametrize(
    "error", [AppRejected("wrong key"), KeyUnavailable("no such file"), RateLimited("wait", wait=60)]
)
async def test_the_second_app_answers_when_the_trouble_is_the_first_apps_own(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer, error: Failed
) -> None:
    issuer.errors["find_by_repository"] = [error]
    broker = serve(clock, issuer, second)

    await filled(broker)

    assert [lease.app for lease, _ in broker.leases()] == ["second-bot"]


async def test_the_first_apps_own_trouble_is_told_when_no_other_can(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer
) -> None:
    issuer.errors["find_by_repository"] = [AppRejected("wrong key")]
    second.repositories.clear()
    broker = serve(clock, issuer, second)

    assert isinstance(await refused(broker), AppRejected)


async def test_the_first_apps_trouble_is_not_remembered_for_longer_than_the_seconds_limit_lasts(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer
) -> None:
    issuer.errors["find_by_repository"] = [KeyUnavailable("the key is locked")] * 2
    second.errors["find_by_repository"] = [RateLimited("wait", wait=1)]
    broker = serve(clock, issuer, second)

    assert isinstance(await refused(broker), RateLimited)
    clock.advance(1)
    await filled(broker)

    assert [lease.app for lease, _ in broker.leases()] == ["second-bot"]


async def test_an_outage_is_not_tried_again_with_every_app(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer
) -> None:
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]
    broker = serve(clock, issuer, second)

    assert isinstance(await refused(broker), NetworkFailed)
    assert second.calls == []


@pytest.mark.parametrize("why", ["not installed", "not selected", "suspended"])
async def test_a_living_lease_of_the_second_app_is_served_without_asking_what_the_first_could_do(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer, why: str
) -> None:
    if why == "not installed":
        issuer.installations.clear()
    elif why == "not selected":
        issuer.repositories.clear()
    else:
        issuer.install("one", suspended=True)
    broker = serve(clock, issuer, second)
    first = await filled(broker)
    asked = issuer.count("find_by_repository")
    clock.advance(61)
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")] * 9
    second.errors["find_by_repository"] = [NetworkFailed("no route")] * 9

    assert (await filled(broker)).token == first.token
    await settled(broker)
    assert issuer.count("find_by_repository") == asked + 1  # behind it
    assert issuer.count("create_token") == 0

    clock.advance(3600 - 61 - 200)
    second.errors["create_token"] = [NetworkFailed("no route")]
    assert (await filled(broker)).token == first.token  # in its last minutes, after both have failed


async def test_the_first_app_is_found_again_behind_a_lease_of_the_second(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer
) -> None:
    repositories = dict(issuer.repositories)
    issuer.repositories.clear()
    broker = serve(clock, issuer, second)
    await filled(broker)
    clock.advance(61)
    issuer.repositories |= repositories

    await filled(broker)
    await settled(broker)
    await filled(broker)

    assert {lease.app for lease, _ in broker.leases()} == {"acme-bot", "second-bot"}


async def test_while_one_app_is_limited_and_the_other_refuses_the_calls_have_a_limit(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer
) -> None:
    issuer.errors["find_by_repository"] = [RateLimited("wait", wait=600)]
    second.install("one", suspended=True)
    broker = serve(clock, issuer, second)

    for _ in range(20):
        assert isinstance(await refused(broker), RateLimited)
        clock.advance(1)

    assert len(second.calls) <= 20 / 3 + 1


async def test_what_must_not_be_asked_for_a_moment_is_asked_as_soon_as_that_is_over(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    """A lease near its end, of a repository whose place is known for too long, while another's look-up was limited."""
    issuer.life = 3720.0
    first = await filled(broker)
    clock.advance(3610)
    issuer.errors["find_by_repository"] = [RateLimited("wait", wait=5)]
    await refused(broker, ask("one", "other"))
    clock.advance(2)
    assert (await filled(broker)).token == first.token

    clock.advance(4)

    assert (await filled(broker)).token != first.token


def test_a_limit_that_is_told_after_its_end_is_not_remembered_for_longer() -> None:
    """The lid was closed between GitHub's answer and ours, and another request has looked meanwhile."""
    restraint, limit = Restraint(), RateLimited("wait", wait=60)
    restraint.remember("app", limit, 0.0)
    restraint.raise_remembered("app", 25_200.0)

    restraint.remember_request("request", limit, 25_200.0)

    restraint.raise_remembered("request", 25_200.0)


async def test_of_two_apps_that_are_limited_the_first_that_is_free_again_is_asked_at_once(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer
) -> None:
    issuer.errors["find_by_repository"] = [RateLimited("wait", wait=600)]
    second.errors["find_by_repository"] = [RateLimited("wait", wait=1)]
    second.install("one")
    broker = serve(clock, issuer, second)
    assert isinstance(await refused(broker), RateLimited)

    clock.advance(1)

    assert (await filled(broker)).token.startswith("ghs_")


async def test_an_app_narrowed_to_other_owners_or_another_host_is_not_asked(clock: FakeClock) -> None:
    narrowed = ScriptedIssuer(make_app(owners=("Other",)), clock)
    elsewhere = ScriptedIssuer(make_app("ghes", host="ghe.example"), clock)
    broker = serve(clock, narrowed, elsewhere)

    assert await broker.fill(ask()) is None
    assert (narrowed.calls, elsewhere.calls) == ([], [])


# -- no token can exist --------------------------------------------------------------------------------------------


async def test_a_foreign_owner_is_asked_about_once_a_minute(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    for name in ("linux", "git"):
        assert await broker.fill(ask(name, "torvalds")) is None
        clock.advance(29)
    assert len(issuer.calls) == 2

    clock.advance(2)
    issuer.install("linux", owner="torvalds", number=9)

    assert (await filled(broker, ask("linux", "torvalds"))).token.startswith("ghs_")


async def test_a_repository_that_is_not_selected_is_asked_about_once_in_thirty_seconds(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    error = await refused(broker, ask("three"))
    calls = len(issuer.calls)
    clock.advance(29)
    again = await refused(broker, ask("THREE"))

    assert (type(error), error.stops_git, error.hint) == (NotSelected, False, f"select the repository at {PAGE}")
    assert error.message == ("the app acme-bot is installed on acme, but not on three, or there is no such repository")
    assert again is error
    assert (calls, len(issuer.calls)) == (2, 2)

    clock.advance(2)
    issuer.install("three")
    assert (await filled(broker, ask("three"))).token.startswith("ghs_")


async def test_a_repository_unselected_later_is_noticed_by_the_refused_mint(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    await filled(broker, ask("two"))
    del issuer.repositories["acme/one"]

    error = await refused(broker)

    assert isinstance(error, NotSelected)
    assert [name for name, _ in issuer.calls[2:]] == ["create_token", "find_by_repository", "find_by_owner"]


async def test_a_suspended_installation_speaks_without_a_mint(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.install("one", suspended=True)

    error = await refused(broker)

    assert (type(error), error.stops_git, error.hint) == (Suspended, False, f"unsuspend it at {PAGE}")
    assert [name for name, _ in issuer.calls] == ["find_by_repository"]


async def test_an_installation_unsuspended_again_is_noticed_within_a_minute(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.install("one", suspended=True)
    await refused(broker)
    issuer.install("one")
    clock.advance(31)

    assert (await filled(broker)).token.startswith("ghs_")


async def test_a_suspension_seen_at_the_mint_is_looked_up_once(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker, ask("two"))
    issuer.install("one", suspended=True)
    issuer.errors["create_token"] = [Suspended("an installation is suspended")]

    error = await refused(broker)

    assert (type(error), error.hint) == (Suspended, f"unsuspend it at {PAGE}")
    assert [name for name, _ in issuer.calls[2:]] == ["create_token", "find_by_repository"]


async def test_another_username_is_foreign_only_where_the_repository_is_ours(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    error = await refused(broker, ask(our_username=False))

    assert (type(error), error.stops_git) == (ForeignUser, False)
    assert error.hint == "remove the username from the URL: https://github.com/acme/one"
    assert issuer.count("create_token") == 0
    assert await broker.fill(ask("linux", "torvalds", our_username=False)) is None
    assert (await filled(broker)).token.startswith("ghs_")


async def test_a_permission_that_was_not_granted_is_named_with_the_page_that_grants_it(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    issuer.install("one", permissions=(("metadata", "read"),))

    error = await refused(broker)

    assert (type(error), error.message, error.hint) == (
        PermissionMissing,
        "acme has not granted the app contents: read",
        f"accept the app's permissions at {PAGE}",
    )


@pytest.mark.parametrize("at_the_mint", [False, True])
async def test_a_permission_granted_since_the_look_up_is_noticed(clock: FakeClock, *, at_the_mint: bool) -> None:
    issuer = ScriptedIssuer(make_app(permissions=(("contents", "write"),)), clock)
    issuer.install("one", permissions=(("contents", "write" if at_the_mint else "read"),))
    broker = serve(clock, issuer)
    if at_the_mint:
        issuer.errors["create_token"] = [PermissionMissing("GitHub: the permissions requested are not granted")]
    first = await refused(broker)
    clock.advance(31)
    issuer.install("one", permissions=(("contents", "write"),))

    assert isinstance(first, PermissionMissing)
    assert (await filled(broker)).token.startswith("ghs_")


# -- what we believed was old --------------------------------------------------------------------------------------


async def test_an_app_installed_anew_is_found_under_its_new_id(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker, ask("two"))
    issuer.install("one", number=70)

    await filled(broker)

    assert [name for name, _ in issuer.calls[2:]] == ["create_token", "find_by_repository", "create_token"]
    assert {lease.scope.installation for lease, _ in broker.leases()} == {7, 70}


async def test_an_app_removed_from_the_owner_is_no_longer_responsible(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker, ask("two"))
    issuer.installations.clear()

    assert await broker.fill(ask()) is None


async def test_an_app_that_is_gone_whenever_it_mints_is_not_responsible(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.errors["create_token"] = [NotInstalled("gone")] * 2

    assert await broker.fill(ask()) is None


async def test_a_renamed_repository_is_minted_by_id_after_the_422(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker, ask("two"))
    issuer.moved["acme/old"] = ("acme", 900)

    await filled(broker, ask("old"))
    await filled(broker, ask("old"))

    assert [name for name, _ in issuer.calls[2:]] == ["create_token", "find_by_repository", "create_token"]
    assert broker.leases()[-1][0].scope.repositories == (900,)
    assert broker.leases()[-1][0].repositories == ("new-name",)


async def test_each_name_by_which_a_renamed_repository_was_asked_for_is_known_also_of_a_token_nobody_has_yet(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    for name in ("first", "second"):
        issuer.moved[f"acme/{name}"] = ("acme", 900)
        await filled(broker, ask(name))
    (lease,) = [each for each, _ in broker.leases()]
    assert {str(name) for name in broker.old_names(lease)} == {"acme/first", "acme/second"}
    await broker.token("github.com", [ONE, Repository("acme", "first")], None)
    (_, several) = [each for each, _ in broker.leases()]
    assert {str(name) for name in broker.old_names(several)} == {"acme/first"}

    await broker.revoke_all()
    issuer.lag = issuer.looks + 1
    asking = asyncio.create_task(filled(broker, ask("first")))
    await eventually(lambda: issuer.minted == 3)
    asking.cancel()
    (fresh,) = await broker.retire(lambda lease: Repository("acme", "first") in broker.old_names(lease))
    assert fresh.token not in {lease.token, several.token}


async def test_a_renamed_repository_asked_for_beside_another_is_found_too(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    issuer.moved["acme/old"] = ("acme", 900)

    await asyncio.gather(filled(broker), filled(broker, ask("old")))

    assert {lease.scope.repositories for lease, _ in broker.leases()} == {("one",), (900,)}


async def test_a_repository_that_cannot_be_minted_is_not_tried_for_ever(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.errors["create_token"] = [NotSelected("there is at least one repository")] * 9

    assert isinstance(await refused(broker), NotSelected)
    assert [name for name, _ in issuer.calls] == ["find_by_repository", "create_token"]


async def test_an_outage_during_the_second_look_is_told(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker, ask("two"))
    issuer.errors["create_token"] = [NotInstalled("gone")]
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]

    assert isinstance(await refused(broker), NetworkFailed)


# -- tokens that are not what was asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"permissions": (("administration", "write"), ("contents", "write"))}, "it allows administration: write"),
        ({"permissions": (("contents", "admin"),)}, "it allows contents: admin"),
        ({"repository_selection": "all"}, "it reaches every repository"),
        ({"repository_selection": ""}, "it reaches every repository"),
        ({"repositories": ((700, "one"), (701, "two"))}, "its repositories differ in two"),
        ({"repositories": ()}, "its repositories differ in one"),
    ],
)
async def test_a_token_wider_than_asked_for_is_revoked_and_refused(
    broker: Broker, issuer: ScriptedIssuer, changes: dict[str, object], reason: str
) -> None:
    issuer.edit = lambda issued: replace(issued, **changes)  # type: ignore[arg-type]  # a table of fields

    error = await refused(broker)

    assert (type(error), error.message) == (
        BadAnswer,
        f"GitHub issued another token than was asked for: {reason}; it was revoked",
    )
    assert (len(issuer.revoked), broker.leases()) == (1, [])


async def test_a_wider_token_that_cannot_be_revoked_is_refused_all_the_same(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    issuer.edit = lambda issued: replace(issued, repository_selection="all")
    issuer.errors["revoke_token"] = [NetworkFailed("no route")]

    error = await refused(broker)

    assert isinstance(error, BadAnswer)
    assert error.message.endswith("it could not be revoked: no route")


# -- erase, and git's state ----------------------------------------------------------------------------------------


async def test_erase_with_an_old_password_keeps_the_fresh_lease(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    old = await filled(broker)
    clock.advance(3400)
    fresh = await filled(broker)

    assert broker.erase(old.token) is True  # it was still held, for those who use it
    assert broker.erase(old.token) is False
    assert (await filled(broker)).token == fresh.token
    assert broker.erase(fresh.token) is True
    assert (await filled(broker)).token not in {old.token, fresh.token}
    assert issuer.count("create_token") == 3


async def test_a_lease_that_git_saw_rejected_is_replaced(broker: Broker) -> None:
    first = await filled(broker)

    second = await filled(broker, ask(rejected=first.lease, comes_back=True))
    third = await filled(broker, ask(rejected=first.lease, comes_back=True))

    assert first.token != second.token
    assert second == third  # the late request does not evict the fresh lease


async def test_an_erase_loop_mints_six_times_a_minute(broker: Broker, issuer: ScriptedIssuer, clock: FakeClock) -> None:
    for _ in range(6):
        broker.erase((await filled(broker)).token)
        clock.advance(1)

    error = await refused(broker)

    assert (type(error), error.remember, issuer.count("create_token")) == (RateLimited, 54.0, 6)
    assert (await filled(broker, ask("two"))).token.startswith("ghs_")
    clock.advance(54)
    assert (await filled(broker)).token.startswith("ghs_")


async def test_beyond_six_failed_mints_a_minute_the_last_error_is_the_answer(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.errors["create_token"] = [GitHubFailing(f"HTTP {status}") for status in range(500, 510)]
    for _ in range(6):
        await refused(broker)
        clock.advance(4)

    error = await refused(broker)

    assert (error.message, issuer.count("create_token")) == ("HTTP 505", 6)


async def test_an_app_mints_no_more_than_github_bears(broker: Broker, issuer: ScriptedIssuer, clock: FakeClock) -> None:
    names = [f"r{number}" for number in range(151)]
    issuer.install(*names)
    for name in names[:150]:
        await filled(broker, ask(name))

    assert isinstance(await refused(broker, ask(names[150])), RateLimited)
    clock.advance(61)
    assert (await filled(broker, ask(names[150]))).token.startswith("ghs_")


# -- when GitHub says to stay away ---------------------------------------------------------------------------------


async def test_a_wrong_key_is_tried_once_a_minute(broker: Broker, issuer: ScriptedIssuer, clock: FakeClock) -> None:
    issuer.errors["find_by_repository"] = [AppRejected("wrong key")] * 99

    results = await asyncio.gather(
        *(broker.fill(ask("one", f"owner{number}")) for number in range(50)), return_exceptions=True
    )
    clock.advance(59)
    await refused(broker, ask("two"))
    assert {type(result) for result in results} == {AppRejected}
    assert len(issuer.calls) == 1

    clock.advance(1)
    await refused(broker)
    assert len(issuer.calls) == 2


async def test_an_outage_before_the_first_answer_does_not_queue_up(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]

    results = await asyncio.gather(
        *(broker.fill(ask("one", f"owner{number}")) for number in range(50)), return_exceptions=True
    )

    assert {type(result) for result in results} == {NetworkFailed}
    assert len(issuer.calls) == 1


async def test_calls_run_side_by_side_once_the_key_is_proven(broker: Broker, issuer: ScriptedIssuer) -> None:
    await broker.fill(ask("linux", "torvalds"))

    await asyncio.gather(*(broker.fill(ask("one", f"owner{number}")) for number in range(20)))

    assert issuer.most_under_way == 20


async def test_a_refusal_of_githubs_own_proves_the_key(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.errors["find_by_repository"] = [Suspended("the installation is suspended")]
    await refused(broker, ask("two"))

    await asyncio.gather(*(broker.fill(ask("one", f"owner{number}")) for number in range(5)))

    assert issuer.most_under_way == 5


async def test_a_failure_of_a_proven_app_concerns_only_that_request(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker)
    issuer.errors["create_token"] = [GitHubFailing("HTTP 502")]

    assert isinstance(await refused(broker, ask("two")), GitHubFailing)
    assert await broker.fill(ask("linux", "torvalds")) is None


async def test_a_limited_app_makes_no_call_while_living_leases_are_served(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    lease = await filled(broker)
    issuer.errors["create_token"] = [RateLimited("until 14:00", wait=900)]
    assert isinstance(await refused(broker, ask("two")), RateLimited)
    calls = len(issuer.calls)

    for _ in range(3):
        clock.advance(299)
        assert (await filled(broker)).token == lease.token
        assert isinstance(await refused(broker, ask("two")), RateLimited)
        assert isinstance(await refused(broker, ask("linux", "torvalds")), RateLimited)
    assert len(issuer.calls) == calls

    clock.advance(4)
    assert (await filled(broker, ask("two"))).token.startswith("ghs_")


# -- tokens of a daemon before us ----------------------------------------------------------------------------------


async def lent_token(broker: Broker) -> Lease:
    broker.open_grant("box#1")
    return await broker.token("github.com", [ONE], None, grant="box#1")


async def test_what_is_adopted_is_never_handed_out_and_ends_with_its_grant(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    lease = await lent_token(broker)

    broker.adopt(lease, ["ghs_before", "ghs_earlier", "ghs_before"])

    assert await lent_token(broker) == lease
    assert {each.token for each, _ in broker.leases()} == {lease.token, "ghs_before", "ghs_earlier"}
    assert len(broker.leases()) == 3
    broker.erase(lease.token, "box#1")
    fresh = await lent_token(broker)
    assert fresh.token not in {lease.token, "ghs_before", "ghs_earlier"}
    assert await broker.close_grant("box#1") == (3, 0)
    assert sorted(issuer.revoked) == sorted([fresh.token, "ghs_before", "ghs_earlier"])


async def test_what_is_adopted_is_held_for_no_longer_than_it_can_live(broker: Broker, clock: FakeClock) -> None:
    broker.adopt(await lent_token(broker), ["ghs_before"])

    clock.advance(64 * 60)
    assert [lease.token for lease, _ in broker.leases()] == ["ghs_before"]
    clock.advance(60)
    assert broker.leases() == []


async def test_nothing_adopted_changes_nothing(broker: Broker) -> None:
    lease = await lent_token(broker)
    await broker.retire()  # as somebody may who revokes at this moment

    broker.adopt(lease, [])

    assert [each for each, _ in broker.leases()] == [lease]
    assert await lent_token(broker) != lease


async def test_a_token_that_is_held_already_stays_whose_it_is(broker: Broker) -> None:
    mine = await filled(broker)
    lease = await lent_token(broker)

    broker.adopt(lease, [mine.token, lease.token])

    assert len(broker.leases()) == 2
    assert await broker.close_grant("box#1") == (1, 0)
    assert await filled(broker) == mine


async def test_a_new_configuration_forgets_what_failed(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.errors["find_by_repository"] = [AppRejected("wrong key")]
    await refused(broker)

    broker.configure([issuer])

    assert (await filled(broker)).token.startswith("ghs_")


async def test_a_new_configuration_does_not_forget_that_github_wants_us_to_wait(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.errors["find_by_repository"] = [RateLimited("until 14:00", wait=600)]
    await refused(broker)

    broker.configure([issuer])
    clock.advance(599)

    assert isinstance(await refused(broker), RateLimited)
    assert len(issuer.calls) == 1
    clock.advance(1)
    assert (await filled(broker)).token.startswith("ghs_")


async def test_a_limit_is_remembered_however_many_other_requests_fail(clock: FakeClock) -> None:
    limited = ScriptedIssuer(make_app("limited", owners=("acme",)), clock)
    other = ScriptedIssuer(make_app("other", owners=("beta",)), clock)
    other.install("one", owner="beta")
    broker = serve(clock, limited, other)
    limited.errors["find_by_repository"] = [RateLimited("until 14:00", wait=3600)]
    await refused(broker)

    for number in range(1_100):
        assert isinstance(await refused(broker, ask(f"no{number}", "beta")), NotSelected)
        clock.advance(0.5)

    assert isinstance(await refused(broker), RateLimited)
    assert len(limited.calls) == 1


async def test_remembered_failures_are_bounded(broker: Broker, clock: FakeClock) -> None:
    for number in range(1_100):
        await refused(broker, ask(f"no{number}"))
        clock.advance(0.5)

    assert len(broker._restraint) == 1_000


# -- without a path ------------------------------------------------------------------------------------------------


WITHOUT_PATH = Query("github.com", None)


@pytest.fixture
def whole(clock: FakeClock) -> ScriptedIssuer:
    whole = ScriptedIssuer(make_app(whole_installation=True), clock)
    whole.install()
    return whole


async def test_without_a_path_the_only_whole_installation_answers(clock: FakeClock, whole: ScriptedIssuer) -> None:
    broker = serve(clock, whole)

    found = await asyncio.gather(*(filled(broker, WITHOUT_PATH) for _ in range(20)))

    assert len({credential.token for credential in found}) == 1
    assert (whole.count("list_installations"), whole.count("create_token")) == (1, 1)


async def test_without_a_path_a_suspended_or_excluded_installation_does_not_count(clock: FakeClock) -> None:
    whole = ScriptedIssuer(make_app(whole_installation=True, owners=("acme", "gone")), clock)
    whole.install()
    whole.install(owner="gone", number=8, suspended=True)
    whole.install(owner="not-listed", number=9)

    await filled(serve(clock, whole), WITHOUT_PATH)

    assert whole.calls[-1][0] == "create_token"


@pytest.mark.parametrize("case", ["only single repositories", "two installations", "none"])
async def test_without_a_path_nothing_is_chosen_where_there_is_a_choice(
    clock: FakeClock, issuer: ScriptedIssuer, whole: ScriptedIssuer, case: str
) -> None:
    whole.install(owner="other", number=8)
    broker = serve(clock, *{"only single repositories": [issuer], "two installations": [whole], "none": []}[case])

    error = await refused(broker, WITHOUT_PATH)

    assert (type(error), error.hint, error.stops_git) == (PathMissing, "ghapp setup-git", False)


async def test_without_a_path_another_username_is_not_ours(clock: FakeClock, whole: ScriptedIssuer) -> None:
    error = await refused(serve(clock, whole), Query("github.com", None, our_username=False))

    assert (type(error), error.message) == (ForeignUser, "github.com was asked for with another username")


async def test_without_a_path_an_app_installed_anew_is_found(clock: FakeClock, whole: ScriptedIssuer) -> None:
    broker = serve(clock, whole)
    broker.erase((await filled(broker, WITHOUT_PATH)).token)
    whole.install(number=70)

    await filled(broker, WITHOUT_PATH)

    assert [lease.scope.installation for lease, _ in broker.leases()] == [70]


async def test_without_a_path_a_second_refusal_is_final(clock: FakeClock, whole: ScriptedIssuer) -> None:
    whole.errors["create_token"] = [Suspended("suspended")] * 5

    assert isinstance(await refused(serve(clock, whole), WITHOUT_PATH), Suspended)
    assert whole.count("create_token") == 2


async def test_without_a_path_a_living_lease_is_served_when_github_is_away(
    clock: FakeClock, whole: ScriptedIssuer
) -> None:
    broker = serve(clock, whole)
    first = await filled(broker, WITHOUT_PATH)
    clock.advance(120)
    whole.errors["list_installations"] = [NetworkFailed("no route")] * 5

    assert (await filled(broker, WITHOUT_PATH)).token == first.token
    await settled(broker)
    assert (await filled(broker, WITHOUT_PATH)).token == first.token
    assert whole.count("list_installations") == 2


async def test_without_a_path_who_has_a_living_lease_does_not_wait_for_the_list(
    clock: FakeClock, whole: ScriptedIssuer
) -> None:
    broker = serve(clock, whole)
    first = await filled(broker, WITHOUT_PATH)
    clock.advance(120)
    whole.hold = asyncio.Event()  # GitHub says nothing

    async with asyncio.timeout(5):  # of the twelve that a call may take
        assert (await filled(broker, WITHOUT_PATH)).token == first.token
        assert (await filled(broker, WITHOUT_PATH)).token == first.token
    await settled_turn()
    assert whole.count("list_installations") == 2

    whole.install(owner="other", number=8)
    whole.hold.set()
    await settled(broker)
    assert isinstance(await refused(broker, WITHOUT_PATH), PathMissing)  # what came of it is believed


async def test_without_a_path_a_list_that_is_too_old_mints_nothing(clock: FakeClock, whole: ScriptedIssuer) -> None:
    broker = serve(clock, whole)
    await filled(broker, WITHOUT_PATH)
    clock.advance(3600)
    whole.install(number=70)

    await filled(broker, WITHOUT_PATH)

    assert [lease.scope.installation for lease, _ in broker.leases()] == [70]
    assert (whole.count("list_installations"), whole.count("create_token")) == (2, 2)


async def test_without_a_path_an_outage_is_told_when_nothing_is_known(clock: FakeClock, whole: ScriptedIssuer) -> None:
    whole.errors["list_installations"] = [NetworkFailed("no route")]

    assert isinstance(await refused(serve(clock, whole), WITHOUT_PATH), NetworkFailed)


# -- tokens for tools ----------------------------------------------------------------------------------------------


async def test_a_tool_gets_all_that_is_granted_for_the_named_repositories(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    lease = await broker.token("github.com", [Repository("Acme", "two"), ONE, Repository("acme", "ONE")], None)

    assert lease.scope.repositories == ("one", "two")
    assert lease.scope.permissions == issuer.installations["acme"].permissions
    assert broker.leases() == [(lease, 1)]


async def test_a_tool_that_reads_gets_no_permission_that_cannot_only_read(broker: Broker) -> None:
    lease = await broker.token("github.com", [ONE], None, read_only=True)

    assert lease.scope.permissions == (("contents", "read"), ("issues", "read"), ("metadata", "read"))


@pytest.mark.parametrize(
    ("permissions", "read_only", "expected"),
    [
        ((("issues", "write"),), False, (("issues", "write"),)),
        ((("issues", "write"),), True, (("issues", "read"),)),
        ((("metadata", "read"),), False, (("metadata", "read"),)),
    ],
)
async def test_a_tool_gets_the_permissions_it_names(
    broker: Broker, *, permissions: tuple[tuple[str, str], ...], read_only: bool, expected: object
) -> None:
    lease = await broker.token("github.com", [ONE], permissions, read_only=read_only)

    assert lease.scope.permissions == expected


@pytest.mark.parametrize(
    ("repositories", "permissions", "read_only", "error"),
    [
        ([], None, False, UsageError("a token is for repositories of one owner")),
        ([ONE, Repository("other", "x")], None, False, UsageError("a token is for repositories of one owner")),
        ([ONE], (), False, UsageError("a token needs at least one permission")),
        ([ONE], (("workflows", "write"),), True, UsageError("a token needs at least one permission")),
        ([ONE], (("pages", "read"),), False, PermissionMissing("acme has not granted the app pages: read")),
        ([ONE], (("contents", "rule"),), False, PermissionMissing("acme has not granted the app contents: rule")),
        ([Repository("nobody", "x")], None, False, NotInstalled("no app of yours is installed on nobody")),
        (
            [ONE, Repository("acme", "three")],
            None,
            False,
            NotSelected("the app acme-bot is installed on acme, but not on three, or there is no such repository"),
        ),
        ([Repository("acme", "sold")], None, False, None),
        ([ONE, Repository("acme", "sold")], None, False, UsageError("one of the repositories has left acme")),
    ],
)
async def test_a_tool_is_told_what_it_cannot_have(
    broker: Broker,
    issuer: ScriptedIssuer,
    *,
    repositories: list[Repository],
    permissions: tuple[tuple[str, str], ...] | None,
    read_only: bool,
    error: GhappError | None,
) -> None:
    issuer.install(owner="buyer", number=9)
    issuer.moved["acme/sold"] = ("buyer", 901)
    if error is None:
        lease = await broker.token("github.com", repositories, permissions, read_only=read_only)
        assert (lease.owner, lease.scope.repositories) == ("buyer", (901,))
        return

    with pytest.raises(type(error)) as caught:
        await broker.token("github.com", repositories, permissions, read_only=read_only)

    assert caught.value.message == error.message


async def test_a_tool_is_told_of_a_suspension_without_a_mint(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.install("one", suspended=True)

    with pytest.raises(Suspended):
        await broker.token("github.com", [ONE], None)

    assert issuer.count("create_token") == 0


async def test_a_tool_finds_a_repository_by_its_old_name_beside_others(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker)
    issuer.moved["acme/old"] = ("acme", 900)

    lease = await broker.token("github.com", [ONE, Repository("acme", "old")], None)

    assert lease.scope.repositories == (900, "one")


async def test_a_tool_finds_an_app_that_was_installed_anew(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker)
    issuer.install("one", number=70)

    lease = await broker.token("github.com", [ONE], None)

    assert lease.scope.installation == 70


# -- the end -------------------------------------------------------------------------------------------------------


async def many_leases(broker: Broker, issuer: ScriptedIssuer, count: int) -> None:
    issuer.install(*(f"r{number}" for number in range(count)))
    for number in range(count):
        await filled(broker, ask(f"r{number}"))
    issuer.calls.clear()
    issuer.most_under_way = 0


async def test_all_tokens_are_revoked_ten_at_a_time(broker: Broker, issuer: ScriptedIssuer) -> None:
    await many_leases(broker, issuer, 25)

    assert await broker.revoke_all() == (25, 0)
    assert (len(set(issuer.revoked)), issuer.most_under_way, broker.leases()) == (25, 10, [])


async def test_expired_leases_need_no_end_and_nothing_is_nothing(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await many_leases(broker, issuer, 2)
    clock.advance(3600)

    assert await broker.revoke_all() == (0, 0)
    assert issuer.calls == []


async def test_leases_that_could_not_be_revoked_are_counted_and_kept(broker: Broker, issuer: ScriptedIssuer) -> None:
    await many_leases(broker, issuer, 5)
    issuer.errors["revoke_token"] = [GitHubFailing("HTTP 502"), NetworkFailed("no route")]

    assert await broker.revoke_all() == (3, 2)
    assert len(broker.leases()) == 2


async def test_revoking_ends_in_time(clock: FakeClock, issuer: ScriptedIssuer) -> None:
    broker = Broker(clock, revoke_budget=0.02)
    broker.configure([issuer])
    await many_leases(broker, issuer, 3)
    issuer.hold = asyncio.Event()

    assert await broker.revoke_all() == (0, 3)


async def test_leases_of_an_api_no_longer_configured_are_revoked_too(broker: Broker, issuer: ScriptedIssuer) -> None:
    await many_leases(broker, issuer, 1)
    broker.configure([])

    assert await broker.revoke_all() == (1, 0)
    assert isinstance(await broker.fill(ask()), Credential | None)


async def test_a_mint_under_way_is_waited_for_and_its_token_revoked(broker: Broker, issuer: ScriptedIssuer) -> None:
    issuer.lag = 1
    asking = asyncio.create_task(filled(broker))
    await eventually(lambda: issuer.minted == 1)

    assert await broker.revoke_all() == (1, 0)
    assert issuer.revoked == [(await asking).token]


async def test_a_mint_that_does_not_end_in_time_may_leave_a_token(clock: FakeClock, issuer: ScriptedIssuer) -> None:
    broker = Broker(clock, revoke_budget=0.02)
    broker.configure([issuer])
    issuer.hold = asyncio.Event()
    asking = asyncio.create_task(broker._minting.lease(await order_of(issuer)))
    await eventually(lambda: issuer.count("create_token") == 1)

    assert await broker.revoke_all() == (0, 1)
    issuer.hold.set()
    await asking


async def order_of(issuer: ScriptedIssuer) -> Order:
    installation = issuer.installations["acme"]
    scope = Scope(issuer.app.api, issuer.app.issuer, issuer.key, installation.id, ("one",), (("contents", "write"),))
    return Order(issuer, scope, "acme", None)


async def test_no_more_tokens_are_revoked_in_a_minute_than_github_takes(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    order = await order_of(issuer)
    leases = [Lease(f"l{n}", order.scope, "bot", "acme", ("one",), (), f"ghs_{n}", 9e9) for n in range(155)]
    for lease in leases:
        broker._book.put(lease)

    first = await broker.revoke(leases)
    assert (len(first.revoked), first.failed, first.wait) == (150, [], 61.0)
    clock.advance(60.5)
    rest = [lease for lease in leases if lease not in first.revoked]
    assert (await broker.revoke(rest)).revoked == []
    clock.advance(1)
    assert len((await broker.revoke(rest)).revoked) == 5
    assert issuer.count("revoke_token") == 155


async def test_when_github_wants_us_to_wait_no_more_revocations_are_sent(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    await many_leases(broker, issuer, 30)
    issuer.errors["revoke_token"] = [RateLimited("wait", wait=60)]
    held = await broker.retire()

    result = await broker.revoke(held)
    assert (result.failed, result.wait) == ([], 60.0)
    assert issuer.count("revoke_token") < 30
    sent = issuer.count("revoke_token")
    assert (await broker.revoke(await broker.retire())).revoked == []
    assert issuer.count("revoke_token") == sent
    clock.advance(61)
    await broker.revoke(await broker.retire())
    assert broker.leases() == []


async def test_what_is_to_be_revoked_is_handed_out_no_more_and_not_forgotten(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    first = await filled(broker)
    other = await filled(broker, ask("two"))
    (chosen,) = await broker.retire(lambda lease: lease.repositories == ("one",))
    issuer.errors["revoke_token"] = [NetworkFailed("no route")]

    result = await broker.revoke([chosen])

    assert [(lease.token, error.code) for lease, error in result.failed] == [(first.token, "E11")]
    assert (await filled(broker)).token != first.token
    assert (await filled(broker, ask("two"))).token == other.token
    assert first.token in {lease.token for lease, _ in broker.leases()}
    assert (await broker.revoke_all())[0] == 3
    assert first.token in issuer.revoked


async def test_a_token_of_an_api_that_is_configured_no_more_is_revoked(broker: Broker, issuer: ScriptedIssuer) -> None:
    await many_leases(broker, issuer, 1)
    held = await broker.retire()
    broker.configure([])

    assert (await broker.revoke(held)).revoked == held


# -- the lock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revoke", [False, True])
async def test_a_locked_broker_answers_nothing_and_holds_nothing(
    broker: Broker, issuer: ScriptedIssuer, *, revoke: bool
) -> None:
    first = await filled(broker)

    assert await broker.lock(revoke=revoke) == (int(revoke), 0)

    assert (broker.locked, broker.leases(), issuer.revoked) == (True, [], [first.token] * revoke)
    assert broker._minting._renewals == {}
    calls = list(issuer.calls)
    assert isinstance(await refused(broker, ask(owner="nobody")), Locked)
    assert issuer.calls == calls
    with pytest.raises(Locked):
        await broker.token("github.com", [ONE], None)
    assert issuer.minted == 1
    broker.unlock()
    assert (await filled(broker)).token != first.token


@pytest.mark.parametrize("revoke", [False, True])
async def test_a_token_that_is_being_minted_when_the_lock_falls_is_given_to_nobody_and_ended(
    broker: Broker, issuer: ScriptedIssuer, *, revoke: bool
) -> None:
    issuer.lag = 1_000
    asking = asyncio.create_task(refused(broker))
    await eventually(lambda: issuer.looks == 1)

    dead, alive = await broker.lock(revoke=revoke)

    assert isinstance(await asking, Locked)
    assert (len(issuer.revoked), issuer.minted, issuer.looks, broker.leases()) == (1, 1, 1, [])
    assert (dead, alive) == (int(revoke), 0)
    broker.unlock()
    issuer.lag = 0
    await filled(broker)


async def test_a_lock_forgets_what_another_try_could_not_end(broker: Broker, issuer: ScriptedIssuer) -> None:
    await filled(broker)
    issuer.errors["revoke_token"] = [NetworkFailed("no route")]

    assert await broker.lock(revoke=True) == (0, 1)
    assert len(broker.leases()) == 1
    await broker.lock()
    assert broker.leases() == []


# -- the audit trail -----------------------------------------------------------------------------------------------


class Notes:
    """A recorder that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []

    def record(self, action: str, outcome: str, **about: Any) -> None:
        assert about.get("grant") is None
        assert (about.get("scope") is None) is not (about.get("lease") is None)
        assert about.get("seconds") is None or about["seconds"] >= 0
        self.heard.append((action, outcome, about.get("repository", "")))


async def test_every_answer_mint_renewal_and_revocation_is_noted(clock: FakeClock, issuer: ScriptedIssuer) -> None:
    notes = Notes()
    broker = Broker(clock, recorder=notes)
    broker.configure([issuer])
    await filled(broker)
    await broker.token("github.com", [ONE], None)
    clock.advance(3600 - 300 - 200)
    await filled(broker)
    await settled(broker)
    broker.erase((await filled(broker)).token)
    issuer.errors["create_token"] = [GitHubFailing("HTTP 502")]
    await refused(broker)
    issuer.errors["revoke_token"] = [NetworkFailed("no route")]
    await broker.revoke_all()
    await broker.revoke_all()

    actions = [(action, outcome) for action, outcome, _ in notes.heard]
    assert actions[:4] == [("mint", "ok"), ("answer", "ok"), ("mint", "ok"), ("answer", "ok")]
    assert {("renewal", "ok"), ("erase", "ok"), ("mint", "E27"), ("revocation", "E11"), ("revocation", "ok")} <= {
        *actions
    }
    assert {repository for action, _, repository in notes.heard if action == "answer"} == {"acme/one"}


def test_what_declines_lets_git_go_on_and_what_fails_does_not() -> None:
    assert (Declined("x").stops_git, Failed("x").stops_git) == (False, True)


# -- what the state machine of test_invariants.py found ------------------------------------------------------------


async def test_each_scope_has_one_timer_however_often_it_was_minted(broker: Broker) -> None:
    for _ in range(5):
        broker.erase((await filled(broker)).token)
    await filled(broker)

    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # the loop's own
    timers = [timer for timer in scheduled if timer._callback == broker._minting._renew_ahead and not timer.cancelled()]
    assert len(timers) == 1


async def test_a_token_that_died_while_it_was_proven_is_not_handed_out_but_another(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    closings = 1

    async def sees_after_the_lid_was_closed(*_: object) -> bool:
        nonlocal closings
        clock.advance(7200 if closings > 0 else 0)
        closings -= 1
        return True

    monkeypatch.setattr(issuer, "sees", sees_after_the_lid_was_closed)
    assert (await filled(broker)).expires_at == int(clock.wall_time + 3600)
    assert issuer.minted == 2

    closings = 10  # somebody who plays with it
    assert isinstance(await refused(broker, ask("two")), BadAnswer)
    assert issuer.minted == 4


async def test_a_token_that_died_before_its_caller_had_a_turn_is_not_handed_out(
    broker: Broker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the lid stops us anywhere, also between the end of a mint and whoever waits for it."""
    put = broker._book.put

    def put_and_close_the_lid(lease: Lease) -> None:
        put(lease)
        monkeypatch.setattr(broker._book, "put", put)
        asyncio.get_running_loop().call_soon(clock.advance, 10 * 3600)

    monkeypatch.setattr(broker._book, "put", put_and_close_the_lid)

    assert (await filled(broker)).expires_at == int(clock.wall_time + 3600)


async def test_a_refusal_that_is_told_again_is_not_remembered_for_longer(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.errors["find_by_repository"] = [NetworkFailed("no route")]
    await refused(broker)
    clock.advance(2.9)
    await refused(broker, ask("two"))  # the app has not been proven: it is told of the same failure
    clock.advance(0.2)

    assert (await filled(broker, ask("two"))).token.startswith("ghs_")


async def test_a_limit_is_not_told_for_longer_to_those_who_asked_during_it(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    issuer.errors["find_by_repository"] = [RateLimited("until 14:00", wait=900)]
    await refused(broker)
    clock.advance(899)
    await refused(broker, ask("two"))
    clock.advance(2)

    assert (await filled(broker, ask("two"))).token.startswith("ghs_")


async def test_an_app_that_is_limited_for_long_does_not_hide_one_that_is_free_sooner(
    clock: FakeClock, issuer: ScriptedIssuer, second: ScriptedIssuer
) -> None:
    issuer.errors["find_by_repository"] = [RateLimited("until 14:00", wait=900)]
    second.errors["find_by_repository"] = [RateLimited("until 13:01", wait=60)]
    broker = serve(clock, issuer, second)
    assert isinstance(await refused(broker), RateLimited)
    clock.advance(61)

    await filled(broker)

    assert [lease.app for lease, _ in broker.leases()] == ["second-bot"]


async def test_a_mint_that_was_not_sent_is_not_counted(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)
    clock.advance(3600 - 250)
    issuer.errors["create_token"] = [RateLimited("wait", wait=60)]
    for _ in range(8):
        assert (await filled(broker)).token == first.token
        clock.advance(7)
    await settled(broker)
    clock.advance(6)

    assert (await filled(broker)).token != first.token


async def test_a_mint_that_failed_minutes_ago_is_no_reason_to_hand_out_an_old_lease(
    broker: Broker, issuer: ScriptedIssuer, clock: FakeClock
) -> None:
    first = await filled(broker)
    clock.advance(3600 - 500)
    issuer.errors["create_token"] = [NetworkFailed("no route")]
    assert (await filled(broker)).token == first.token
    await settled(broker)
    clock.advance(300)

    assert (await filled(broker)).token != first.token


async def test_a_tool_finds_a_renamed_repository_beside_another_after_a_new_installation(
    broker: Broker, issuer: ScriptedIssuer
) -> None:
    issuer.moved["acme/old"] = ("acme", 900)
    together = [ONE, Repository("acme", "old")]
    await broker.token("github.com", together, None)
    issuer.install("one", "two", number=70)
    await filled(broker, ask("two"))

    lease = await broker.token("github.com", together, None)

    assert (lease.scope.installation, lease.scope.repositories) == (70, (900, "one"))
