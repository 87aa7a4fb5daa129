"""`ghapp app create` with a real browser, by keyboard alone, in both colour schemes: from nothing to a clone."""

import contextlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import Machine
from e2e.hunt import found_in, key_secrets, needles, places, token_secrets
from fakes_process import eventually
from session_bus import PASSWORD, Session, session


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A rebound name, for which the proxy is passed by.
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
)
LIMIT = 30.0

# Every text with its colour and what is behind it, as the browser has computed them.
COLOURS = """() => {
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const element of document.querySelectorAll('main *')) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('').trim();
    if (text) found.push([text, getComputedStyle(element).color, behind(element)]);
  }
  for (const heading of document.querySelectorAll('h1'))
    found.push(['before h1', getComputedStyle(heading, '::before').color, behind(heading)]);
  return found;
}"""
FOCUS = """() => {
  const style = getComputedStyle(document.activeElement);
  const card = getComputedStyle(document.querySelector('main')).backgroundColor;
  return [style.outlineStyle, parseFloat(style.outlineWidth), style.outlineColor, card];
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any, machine: Machine) -> Iterator[Callable[..., Any]]:
    """Open a window of a browser for which github.com is the stand-in."""
    with contextlib.ExitStack() as windows:

        def opened(scheme: str = "light", **options: Any) -> Any:
            proxy = {"server": machine.github.proxy_url, "bypass": "127.0.0.1,evil.example"}
            window = chromium.new_context(
                proxy=proxy,
                ignore_https_errors=True,
                color_scheme=scheme,
                viewport={"width": 1100, "height": 860},
                **options,
            )
            windows.callback(window.close)
            page = window.new_page()
            page.set_default_timeout(LIMIT * 1000)
            return page

        yield opened


@pytest.fixture
def desktop(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    with session(tmp_path / "desktop") as found:
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = found.address
        found.start_keyring(PASSWORD)
        yield found


class Create:
    """A running `ghapp app create`, and the URLs for which it started the browser."""

    def __init__(self, machine: Machine, arguments: tuple[str, ...]) -> None:
        self._told = machine.home.parent / "told"
        script = machine.home.parent / "browser"
        script.write_text(f'#!/bin/sh\necho spoilt; echo spoilt >&2; echo "$1" >> {shlex.quote(str(self._told))}\n')
        script.chmod(0o700)
        self.process = subprocess.Popen(
            ["ghapp", "app", "create", *arguments],
            env=machine.env | {"BROWSER": str(script)},
            cwd=machine.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def opened(self, number: int = 1) -> str:
        eventually(lambda: self.process.poll() is not None or len(self._urls()) >= number, LIMIT)
        assert len(self._urls()) >= number, self.process.communicate()
        return self._urls()[number - 1]

    def _urls(self) -> list[str]:
        return self._told.read_text().splitlines() if self._told.exists() else []

    def done(self, code: int = 0) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=LIMIT)
        assert self.process.returncode == code, err
        return out, err

    def is_gone(self) -> bool:
        port = re.findall(r":(\d+)/", self.opened())[0]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) != 0


@pytest.fixture
def create(machine: Machine) -> Iterator[Callable[..., Create]]:
    started: list[Create] = []

    def begin(*arguments: str) -> Create:
        started.append(Create(machine, arguments))
        return started[-1]

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def luminance(colour: str) -> float:
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def assert_readable(page: Any, scheme: str) -> None:
    """Hold every colour that the browser computed against what people need to read."""
    colours = page.evaluate(COLOURS)
    assert len(colours) > 4
    for text, colour, behind in colours:
        assert contrast(colour, behind) >= 4.5, (text, colour, behind)
    ground = luminance(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert (ground > 0.5) == (scheme == "light")


def tab_to(page: Any, selector: str) -> None:
    """Press Tab until `selector` has the focus, and see the focus."""
    for _ in range(4):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            break
    else:
        raise AssertionError(f"{selector} cannot be reached by keyboard")
    style, width, ring, card = page.evaluate(FOCUS)
    assert style == "solid"
    assert width >= 2
    assert contrast(ring, card) >= 3


def to_github(page: Any, url: str) -> None:
    """Go from our page to GitHub's, by keyboard."""
    page.goto(url)
    tab_to(page, "#create")
    page.keyboard.press("Enter")
    page.wait_for_url("https://github.com/**")


def confirm(page: Any) -> None:
    """Press GitHub's button, by keyboard."""
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")


@pytest.mark.timeout(150)  # it takes four seconds where nothing else runs
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_from_the_page_to_the_first_clone_by_keyboard_alone(
    machine: Machine,
    desktop: Session,
    create: Callable[..., Create],
    tab: Callable[..., Any],
    *,
    scheme: str,
    tmp_path: Path,
) -> None:
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    page = tab(scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.location['url']}: {message.text}"))
    run = create("acme-bot", "--org", "acme")

    page.goto(run.opened())
    assert page.title() == "Create acme-bot - ghapp"
    assert_readable(page, scheme)
    page.screenshot(path=tmp_path / f"form-{scheme}.png", full_page=True)
    tab_to(page, "#create")
    page.screenshot(path=tmp_path / f"focus-{scheme}.png")
    tab_to(page, "a[href='https://github.com/login']")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("https://github.com/organizations/acme/settings/apps/new?state=*")
    confirm(page)
    page.wait_for_selector("h1.good")
    assert "acme-bot is created" in page.inner_text("h1")
    assert_readable(page, scheme)
    page.screenshot(path=tmp_path / f"success-{scheme}.png", full_page=True)
    assert run.opened(2) == "https://github.com/apps/acme-bot/installations/new"
    assert run.process.poll() is None  # it waits for the installation

    tab_to(page, "#install")
    page.keyboard.press("Enter")
    page.wait_for_url("https://github.com/apps/acme-bot/installations/new")
    page.keyboard.press("Tab")
    page.keyboard.type("rocket")
    page.keyboard.press("Enter")
    out, err = run.done()

    assert "installed    on acme (selected repositories)" in out
    assert "spoilt" not in out + err  # browsers print
    assert err.endswith("ghapp: hint: ghapp setup-git\n")
    assert run.is_gone()
    (app,) = machine.github.apps.values()
    (stored,) = desktop.usernames()
    assert stored.startswith(f"github.com/{app.id}/SHA256:")
    machine.ghapp("setup-git")
    machine.git("clone", "https://github.com/acme/rocket.git")
    assert (machine.work / "rocket/README.md").read_text() == "# Rocket\n"
    assert [text for text in complaints if "https://github.com/favicon.ico" not in text] == []
    hunted = needles(key_secrets(app.private_key_pem) + token_secrets(machine.github))
    for name, content in places(machine, machine.home, machine.runtime, machine.work, desktop.home):
        assert not found_in(content, hunted), name


@pytest.mark.parametrize("width", [320, 1600])
def test_the_page_fits_narrow_and_wide_windows(
    create: Callable[..., Create], tab: Callable[..., Any], machine: Machine, width: int, tmp_path: Path
) -> None:
    run = create("a-name-as-long-as-a-name-can-be-wx", "--org", "acme", "--signer", f"file:{machine.home}/acme.pem")
    page = tab()
    page.set_viewport_size({"width": width, "height": 700})
    page.goto(run.opened())

    page.screenshot(path=tmp_path / f"form-{width}.png", full_page=True)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda url: re.sub("state=[^&]*", "state=someone-elses", url), "E61"),
        (lambda url: re.sub("code=[^&]*&", "", url), "E67"),
        (lambda url: url, "E62"),
        (lambda url: url.replace("127.0.0.1", "evil.example"), "E64"),
    ],
    ids=["state", "no code", "unknown code", "rebinding"],
)
def test_a_wrong_way_back_is_refused_with_its_code_in_the_browser_and_in_the_terminal(
    machine: Machine,
    create: Callable[..., Create],
    tab: Callable[..., Any],
    *,
    spoil: Callable[[str], str],
    code: str,
) -> None:
    run = create("--signer", f"file:{machine.home}/acme.pem")
    page = tab()
    page.goto(run.opened())
    state = page.get_attribute("form", "action").partition("state=")[2]

    page.goto(spoil(f"{run.opened()}/created?code=0123456789&state={state}"))
    assert f"({code})" in page.inner_text("main")
    assert_readable(page, "light")

    _, err = run.done(1)
    assert f"({code})" in err
    assert "ghapp: hint: " in err
    assert run.is_gone()
    assert not (machine.home / "acme.pem").exists()
    assert not (machine.home / ".config/ghapp/config.toml").exists()


def eventually_in(page: Any, condition: Callable[[], bool]) -> None:
    """Wait for a condition while the browser's events are handled, which happens in this thread."""
    for _ in range(int(LIMIT * 20)):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not happen in time")


def test_a_second_use_of_the_code_and_a_foreign_host_change_nothing(
    machine: Machine, create: Callable[..., Create], tab: Callable[..., Any]
) -> None:
    hold = threading.Event()
    machine.github.faults.add("/app-manifests/", hold=hold)
    run = create("acme-bot", "--signer", f"file:{machine.home}/acme.pem", "--no-install-wait")
    page, other = tab(), tab()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    to_github(page, run.opened())
    other.goto(run.opened().replace("127.0.0.1", "evil.example").rpartition("/")[0] + "/")
    assert "(E63)" in other.inner_text("main")
    confirm(page)
    eventually_in(page, lambda: any("/created?" in url for url in asked))

    other.goto(next(url for url in asked if "/created?" in url))
    assert "(E62)" in other.inner_text("main")
    hold.set()
    page.wait_for_selector("h1.good")

    _, err = run.done()
    assert "warning: refused for the local page: 1 request of evil.example" in err
    assert run.is_gone()
    assert len(machine.github.apps) == 1


def test_ctrl_c_while_the_key_is_under_way_waits_until_it_is_stored(
    machine: Machine, create: Callable[..., Create], tab: Callable[..., Any]
) -> None:
    hold = threading.Event()
    fault = machine.github.faults.add("/app-manifests/", hold=hold)
    run = create("acme-bot", "--signer", f"file:{machine.home}/acme.pem")
    page = tab()
    to_github(page, run.opened())
    confirm(page)
    eventually_in(page, fault.reached.is_set)

    run.process.send_signal(signal.SIGINT)
    hold.set()
    page.wait_for_selector("h1.good")

    out, err = run.done(130)
    assert "signer       file:" in out
    assert "once it is installed: ghapp setup-git" in err
    (app,) = machine.github.apps.values()
    assert (machine.home / "acme.pem").read_bytes() == app.private_key_pem
    assert 'name = "acme-bot"' in (machine.home / ".config/ghapp/config.toml").read_text()


def test_a_closed_tab_and_ctrl_c_leave_no_listener(
    machine: Machine, create: Callable[..., Create], tab: Callable[..., Any]
) -> None:
    run = create("--signer", f"file:{machine.home}/acme.pem", "--wait", "3s")
    page = tab()
    page.goto(run.opened())
    page.close()
    _, err = run.done(1)
    assert "(E65)" in err
    assert run.is_gone()

    run = create("--signer", f"file:{machine.home}/acme.pem")
    page = tab()
    page.goto(run.opened(2))
    run.process.send_signal(signal.SIGINT)
    _, err = run.done(130)
    assert "ghapp: error: interrupted; nothing more was changed" in err
    assert machine.github.apps == {}
