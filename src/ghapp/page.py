"""The pages that a browser shows while an app is being created: one file of HTML, one of CSS, no script."""

import base64
import hashlib
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template

from ghapp.errors import GhappError
from ghapp.manifest import Draft, Registered, in_words


def _read(name: str) -> str:
    return (resources.files("ghapp") / name).read_text(encoding="utf-8")


_FRAME = Template(_read("page.html"))
_STYLE = _read("page.css")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


@dataclass(frozen=True, slots=True)
class Page:
    """An answer for a browser."""

    status: int
    html: str
    form_target: str = "'none'"
    """The origin that the page's form may be sent to."""

    @property
    def headers(self) -> dict[str, str]:
        """What keeps the page to itself: not stored, not framed, nothing loaded, nothing told to where it leads.

        The form may go on to GitHub only, which sends the browser back to us after a second form, one of its own.
        """
        policy = (
            "default-src 'none'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
            f"style-src 'sha256-{_STYLE_HASH}'",
            f"form-action {self.form_target}",
        )
        return {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": "; ".join(policy),
            "Cache-Control": "no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }


def form(draft: Draft, *, state: str, redirect_url: str, signer: str) -> Page:
    """Return the page that shows what will be created, and the button that sends it to GitHub."""
    whose = f"the organisation {draft.organization}" if draft.organization else "the account you are signed in to"
    where = (
        f"into the file <code>{escape(signer.removeprefix('file:'))}</code>, for you alone to read"
        if signer.startswith("file:")
        else "into the keyring of your desktop session, on this computer"
    )
    allowed = "".join(f"<li>{escape(line)}</li>" for line in in_words(draft.permissions))
    body = f"""<h1>Create the GitHub App {escape(draft.name)}</h1>
<p>It will let git on this computer work as a bot. Nothing is created before you confirm on {escape(draft.host)}.</p>
<dl>
<div><dt>Name</dt><dd>{escape(draft.name)} <span class="quiet">(can be changed on the next page)</span></dd></div>
<div><dt>Owner</dt><dd>{escape(whose)}</dd></div>
<div><dt>It may</dt><dd><ul>{allowed}</ul></dd></div>
<div><dt>Where</dt><dd>the repositories that you choose when you install it, right after this</dd></div>
<div><dt>Its key</dt><dd>goes {where}, and nowhere else</dd></div>
</dl>
<form method="post" action="{escape(draft.action(state))}">
<input type="hidden" name="manifest" value="{escape(draft.text(redirect_url))}">
<button type="submit" id="create">Create on {escape(draft.host)}</button>
</form>
<p class="quiet">You have to be signed in to {escape(draft.host)} in this browser:
<a href="https://{escape(draft.host)}/login" target="_blank" rel="noopener noreferrer">sign in (new tab)</a>.
To change your mind, close this tab and press Ctrl-C in the terminal.</p>"""
    return Page(200, _framed(f"Create {draft.name} - ghapp", body), f"https://{draft.host}")


def success(app: Registered) -> Page:
    """Return the page for an app whose key is in its place."""
    body = f"""<h1 class="good">{escape(app.name)} is created</h1>
<p>It belongs to {escape(app.owner)}, and its key is stored on this computer.</p>
<p>One step is left: choose the repositories in which it may work.</p>
<p><a class="button" id="install" href="{escape(app.install_url)}" rel="noreferrer">Install it</a></p>
<p class="quiet">Then go back to the terminal. You can close this tab.</p>"""
    return Page(200, _framed(f"{app.name} is created - ghapp", body))


def failure(error: GhappError, *, status: int = 400, title: str = "That did not work") -> Page:
    """Return the page for a failure: its reason, its code, and what mends it."""
    mend = f"<p>What to do: {escape(error.hint)}</p>" if error.hint else ""
    reason = error.message[:1].upper() + error.message[1:]
    body = f"""<h1 class="bad">{escape(title)}</h1>
<p>{escape(reason)} ({error.code}).</p>
{mend}
<p class="quiet">Go back to the terminal. You can close this tab.</p>"""
    return Page(status, _framed(f"{title} - ghapp", body))


def plain(status: int, title: str, text: str) -> Page:
    """Return a page that says that there is none."""
    return Page(status, _framed(f"{title} - ghapp", f"<h1>{escape(title)}</h1>\n<p>{escape(text)}</p>"))


def _framed(title: str, body: str) -> str:
    return _FRAME.substitute(title=escape(title), style=_STYLE, body=body)
