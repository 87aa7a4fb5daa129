"""The pages: what they say, what they let a browser do, and whether everybody can read them."""

import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from ghapp import page
from ghapp.errors import CodeRejected
from ghapp.manifest import Draft, Registered


EVIL = '"><script>alert(1)</script>'
CSS = (resources.files("ghapp") / "page.css").read_text()
LIGHT, DARK = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
APP = Registered(7, "Iv", "acme-bot", "Acme Bot", "acme", "github.com", is_organization=True, pem=b"secret")


def form(name: str = "acme-bot", *, organization: str = "acme", signer: str = "keyring") -> page.Page:
    draft = Draft(name, "github.com", organization)
    return page.form(draft, state="STATE", redirect_url="http://127.0.0.1:1/x/created", signer=signer)


class Outline(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


PAGES = {
    "form": form(),
    "success": page.success(APP),
    "failure": page.failure(CodeRejected("that answer was used already", hint="ghapp app create")),
    "plain": page.plain(404, "Nothing here", "Look elsewhere."),
}


@pytest.mark.parametrize("shown", PAGES.values(), ids=PAGES.keys())
def test_every_page_loads_nothing_runs_nothing_and_tells_nobody(shown: page.Page) -> None:
    outline = Outline(shown.html)

    assert not {"script", "iframe", "img", "object", "embed", "base"} & {tag for tag, _ in outline.tags}
    assert [link["href"] for link in outline.of("link")] == ["data:,"]
    assert not any(name.startswith("on") or name == "style" for _, attributes in outline.tags for name in attributes)
    assert "url(" not in CSS
    assert "@import" not in CSS
    policy = dict(part.strip().partition(" ")[::2] for part in shown.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == "'none'"
    assert policy["style-src"].startswith("'sha256-")
    assert "script-src" not in policy
    assert shown.headers["Cache-Control"] == "no-store"
    assert shown.headers["Referrer-Policy"] == "no-referrer"
    assert shown.headers["X-Frame-Options"] == "DENY"
    assert shown.headers["X-Content-Type-Options"] == "nosniff"


def test_only_the_form_may_send_something_and_only_to_github() -> None:
    assert "form-action https://github.com" in PAGES["form"].headers["Content-Security-Policy"].split("; ")
    for name in ("success", "failure", "plain"):
        assert "form-action 'none'" in PAGES[name].headers["Content-Security-Policy"].split("; ")


@pytest.mark.parametrize("shown", PAGES.values(), ids=PAGES.keys())
def test_every_page_has_a_language_a_title_one_heading_and_fits_a_telephone(shown: page.Page) -> None:
    outline = Outline(shown.html)

    assert outline.of("html") == [{"lang": "en"}]
    assert len(outline.of("h1")) == len(outline.of("main")) == len(outline.of("title")) == 1
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in outline.of("meta")
    assert {"name": "color-scheme", "content": "light dark"} in outline.of("meta")
    assert "$" not in outline.text


def test_the_form_says_what_will_be_created_and_posts_it_by_one_button() -> None:
    outline = Outline(form().html)

    for told in ("acme-bot", "the organisation acme", "read and change the code", "into the keyring", "you choose"):
        assert told in outline.text
    (sent,) = outline.of("form")
    assert sent == {
        "method": "post",
        "action": "https://github.com/organizations/acme/settings/apps/new?state=STATE",
    }
    (field,) = outline.of("input")
    assert field["name"] == "manifest"
    assert '"redirect_url": "http://127.0.0.1:1/x/created"' in str(field["value"])
    (button,) = outline.of("button")
    assert button["type"] == "submit"
    assert "account you are signed in to" in Outline(form(organization="").html).text
    assert "into the file /home/me/k.pem" in Outline(form(signer="file:/home/me/k.pem").html).text


def test_no_name_and_no_message_becomes_markup() -> None:
    name = Registered(7, "Iv", "acme-bot", EVIL, EVIL, "github.com", is_organization=False, pem=b"")
    for shown in (
        form(EVIL),
        form(organization=EVIL),
        form(signer=f"file:/{EVIL}"),
        page.success(name),
        page.failure(CodeRejected(EVIL, hint=EVIL), title=EVIL),
        page.plain(404, EVIL, EVIL),
    ):
        outline = Outline(shown.html)
        assert outline.of("script") == []
        assert "alert(1)" in outline.text or "alert(1)" in str(outline.of("input"))


def test_success_and_failure_say_what_comes_next() -> None:
    success, failure = Outline(PAGES["success"].html), Outline(PAGES["failure"].html)

    assert "go back to the terminal" in success.text
    assert [link["href"] for link in success.of("a")] == ["https://github.com/apps/acme-bot/installations/new"]
    assert "secret" not in PAGES["success"].html
    for told in ("That answer was used already (E62)", "ghapp app create", "Go back to the terminal"):
        assert told in failure.text


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_the_guidelines_say() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_enough_in_both_schemes(scheme: str) -> None:
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", scheme))

    for text in ("text", "quiet", "link", "good", "bad"):
        assert contrast(colours[text], colours["card"]) >= 4.5, text
    for button in ("button", "button-hover"):
        assert contrast(colours["on-button"], colours[button]) >= 4.5, button
        assert contrast(colours[button], colours["card"]) >= 3, button
    assert contrast(colours["focus"], colours["card"]) >= 3
