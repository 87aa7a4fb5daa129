"""Which GitHub, and which side of it, a host name and a path mean."""

from dataclasses import dataclass

from standin.faults import Surface


NOTHING_HERE = frozenset({"codeload.github.com", "gist.github.com"})


@dataclass(frozen=True, slots=True)
class Site:
    """One GitHub: github.com, a GHE.com tenant or a GHES."""

    host: str
    """Of the web and git, with a port if the request had one."""
    api: str
    """The API's base URL."""

    @property
    def web(self) -> str:
        return f"https://{self.host}"

    @property
    def anonymous(self) -> bool:
        """GHE.com answers nobody without a token."""
        return not self.host.partition(":")[0].endswith(".ghe.com")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes."""

    surface: Surface
    site: Site
    path: str
    """Without the prefix that a GHES has before its API."""


def locate(host: str, path: str) -> Place | None:
    """Find the place for a `Host` header; `None` for hosts that serve nothing."""
    name = host.partition(":")[0].lower()
    if name in NOTHING_HERE:
        return None
    if name == "api.github.com":
        return Place("api", Site("github.com", "https://api.github.com"), path)
    if name.startswith("api.") and name.endswith(".ghe.com"):
        return Place("api", Site(name.removeprefix("api."), f"https://{name}"), path)
    if name == "github.com" or name.endswith(".ghe.com"):
        return Place("git", Site(name, f"https://api.{name}"), path)
    site = Site(host.lower(), f"https://{host.lower()}/api/v3")
    if path.startswith("/api/v3/"):
        return Place("api", site, path.removeprefix("/api/v3"))
    return Place("git", site, path)
