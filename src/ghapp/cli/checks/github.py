"""What GitHub says: each key, the clock, the limits, each installation; asked now, never from memory."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ghapp import config
from ghapp.cli.checks import FAIL, NOT_REACHED, OK, SKIP, WARN, Answer, Check, Ground, quoted
from ghapp.cli.daemon_client import call
from ghapp.cli.installations import EDIT, UNREACHED, left_out
from ghapp.errors import AppRejected, GhappError
from ghapp.installation import exceeds, permissions_of
from ghapp.routing import App


CLOCK_LIMIT = 60.0  # seconds; GitHub's own tolerance for a JWT's times
FEW = 0.1  # of the hourly requests


def ask(ground: Ground) -> Iterator[Check]:
    """Ask GitHub with each key of each app; says nothing of it: first comes whether GitHub was reached at all."""
    ground.unreached = {}
    for app in ground.config.apps if ground.status is not None else ():
        ground.answers[app.name] = {reference: _ask(ground, app, reference) for reference in app.keys}
    yield from ()


def _ask(ground: Ground, app: App, reference: str) -> Answer:
    if app.host in ground.unreached:
        return ground.unreached[app.host]  # another key would wait as long for the same
    try:
        answer: dict[str, Any] = call(
            "verify_app",
            host=app.host,
            api=app.api,
            signer=reference,
            client_id=app.client_id,
            app_id=app.app_id,
            name=app.name,
        )
    except GhappError as error:
        if error.code in UNREACHED:
            ground.unreached[app.host] = error
        return error
    return answer


def check_apps(ground: Ground) -> Iterator[Check]:
    """Tell what GitHub says to each key of each app."""
    if ground.status is None:
        yield Check("keys", SKIP, "no daemon to ask")
        return
    if not ground.answers:
        yield from ask(ground)
    answers, ground.answers = ground.answers, {}
    for app in ground.config.apps:
        if app.host in ground.unreached:
            for what in ("key", "installations", "rate-limit"):
                yield Check(f"{what} {app.name}", SKIP, NOT_REACHED)
        else:
            yield from _check_app(ground, app, answers[app.name])


def _check_app(ground: Ground, app: App, answers: Mapping[str, Answer]) -> Iterator[Check]:
    found = next((answer for answer in answers.values() if isinstance(answer, dict)), None)
    for reference, answer in answers.items():
        name = f"key {app.name}" if len(app.keys) == 1 else f"key {app.name} {reference}"
        if isinstance(answer, dict):
            yield Check(name, OK, f"GitHub accepts {answer['fingerprint']}")
        elif found is not None:
            fingerprint = reference.partition(":")[2]
            hint = f"ghapp key remove {quoted(fingerprint)}" if answer.code == AppRejected.code else answer.hint
            yield Check(name, WARN, f"{answer}; another key of the app works", hint)
        else:
            yield Check(name, FAIL, str(answer), answer.hint)
    if not answers:
        yield Check(f"key {app.name}", FAIL, f"{app.name} has no key", f"ghapp key add FILE --app {quoted(app.name)}")
    if found is None:
        yield Check(f"installations {app.name}", SKIP, "no key works")
        return
    yield _check_rate_limit(app, found["rate_limit"])
    yield from _check_installations(ground, app, found)


def _check_installations(ground: Ground, app: App, found: dict[str, Any]) -> Iterator[Check]:
    installations = [entry for entry in found["installations"] if app.serves(app.host, entry["account"])]
    if not installations:
        yield _check_nowhere(app, found)
    for entry in installations:
        name = f"installation {entry['account']}"
        ground.pages[app.host, entry["account"].lower()] = entry["html_url"]
        granted = entry["permissions"]
        if entry["suspended"]:
            yield Check(name, FAIL, f"{app.name} is suspended there", f"unsuspend it: {entry['html_url']}")
            continue
        ground.owners.append((app.host, entry["account"]))
        if missing := exceeds(app.permissions or (), permissions_of(granted)):
            yield _check_configured(app, entry, found.get("permissions", {}), missing)
        elif "contents" not in granted:
            why = f"{app.name} was not granted contents: git cannot read or write"
            yield Check(name, FAIL, why, f"grant it: {entry['html_url']}")
        elif pending := sorted(set(found.get("permissions", {}).items()) - set(granted.items())):
            names = ", ".join(f"{key}: {level}" for key, level in pending)
            why = f"{app.name} asks for {names}, which {entry['account']} has not accepted yet"
            yield Check(name, WARN, why, f"accept it: {entry['html_url']}")
        elif granted["contents"] != "write":
            yield Check(name, WARN, f"{app.name} may only read: git cannot push", f"grant more: {entry['html_url']}")
        else:
            also = "" if "workflows" in granted else "; without workflows it cannot change those"
            yield Check(name, OK, f"{app.name}, {entry['repository_selection']} repositories{also}")


def _check_configured(app: App, entry: dict[str, Any], asked: Mapping[str, str], missing: list[str]) -> Check:
    """Say that the configuration wants more for `app` than was granted, and who is to change that."""
    beyond = exceeds(app.permissions or (), permissions_of(asked))
    who = "the app does not ask for" if beyond else f"{entry['account']} has not accepted"
    named = f"permissions of {app.name} in {config.config_file()} name {', '.join(beyond or missing)}"
    hint = EDIT.format(quoted(config.config_file())) if beyond else f"accept it: {entry['html_url']}"
    return Check(f"installation {entry['account']}", FAIL, f"git gets no token: {named}, which {who}", hint)


def _check_nowhere(app: App, found: dict[str, Any]) -> Check:
    name = f"installations {app.name}"
    accounts = [entry["account"] for entry in found["installations"]]
    if not accounts:
        return Check(name, FAIL, "the app is installed nowhere", f"install it: {found['html_url']}/installations/new")
    error = left_out(app, accounts)
    return Check(name, FAIL, error.message, error.hint)


def check_clock(ground: Ground) -> Iterator[Check]:
    """Compare the clocks."""
    offset = None
    if ground.status is not None:
        with contextlib.suppress(GhappError):
            offset = call("status")["clock_offset"]  # now that GitHub was asked
    if ground.is_cut_off:
        yield Check("clock", SKIP, NOT_REACHED)
    elif offset is None:
        yield Check("clock", SKIP, "GitHub did not tell its time")
    elif abs(offset) > CLOCK_LIMIT:
        side = "behind" if offset > 0 else "ahead of"
        why = f"this clock is {abs(offset):.0f} s {side} GitHub's; ghapp corrects for it, other programs do not"
        yield Check("clock", WARN, why, "sudo timedatectl set-ntp true")
    else:
        yield Check("clock", OK, f"{abs(offset):.0f} s from GitHub's")


def _check_rate_limit(app: App, limit: dict[str, Any] | None) -> Check:
    name = f"rate-limit {app.name}"
    if limit is None:
        return Check(name, OK, "this server has none")
    left = f"{limit['remaining']} of {limit['limit']} requests are left until {limit['resets_at']}"
    if limit["remaining"] < limit["limit"] * FEW:
        return Check(name, WARN, left, "find out who uses them: ghapp status")
    return Check(name, OK, left)
