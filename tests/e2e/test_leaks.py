"""Where a token goes when strangers choose the URL: real clones, through a proxy that is every host of the world."""

import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2e.conftest import BIN, Machine
from leak_proxy import GITHUB, LeakProxy


FRONT = BIN / "git-credential-ghapp"
MARK = "ghs_leak" + secrets.token_hex(20)
"""What every token of these tests begins with."""
AT_ONCE = 4  # clones
EVIL = "evil.example:443"
ROCKET = "acme/rocket.git"


@dataclass(frozen=True)
class Case:
    """A URL, the first host that a clone of it asks, and whether github.com is sent a token in the end."""

    url: str
    target: str | None
    """None where git or curl does not even ask."""
    token: bool = False
    unless: str = ""
    """How git may be set up so that there is no token: its own matching of sections is stricter than ours."""
    then: str | None = None
    """The host that is asked last, if that is another one."""


def look_alikes() -> list[Case]:
    hosts = [
        *("foogithub.com", "github.con", "www.github.com", "api.github.com", "gist.github.com", "ghe.com"),
        *("raw.githubusercontent.com", "codeload.github.com", "npm.pkg.github.com", "ghcr.io", "github.io"),
        *("github.com.evil.example", "evil.example.github.com", "evil-github.com", "github-com.example"),
        *("githubxcom.example", "github.company.com", "github_com.example", "xn--gthub-n4a.com", "github.com."),
        *("127.0.0.1", "localhost", "[::1]", "[::ffff:1.2.3.4]", "GITHUB.COM.Evil.Example", "evil.example"),
        *("github.com:8443", "github.com:80", "github.com:22", "github.com:4430", "gist.github.com:443"),
    ]
    return [
        Case(f"https://{host}/{ROCKET}", host.lower() if host[-1].isdigit() and ":" in host else f"{host.lower()}:443")
        for host in hosts
    ]


CASES = [
    Case("https://github.com/acme/rocket.git", GITHUB, token=True),
    Case("https://github.com/acme/rocket", GITHUB, token=True),
    Case("https://github.com/acme/rocket.git/", GITHUB, token=True),
    Case("https://github.com/acme/rocket.wiki.git", GITHUB, token=True),
    Case("https://GitHub.COM/acme/rocket.git", GITHUB, token=True),
    Case("https://github.com:443/acme/rocket.git", GITHUB, token=True),
    Case("https://github.com:/acme/rocket.git", GITHUB, token=True),
    Case("https://git@github.com/acme/rocket.git", GITHUB, token=True),
    Case("https://x-access-token@github.com/acme/rocket.git", GITHUB, token=True),
    Case("https://github.com/ACME/ROCKET.git", GITHUB, token=True, unless="owners"),
    # These are spellings of github.com too: what is asked, and what answers, is github.com itself.
    Case("https://github%2ecom/acme/rocket.git", GITHUB, token=True),
    Case("https://%67ithub.com/acme/rocket.git", GITHUB, token=True),
    Case("https:///github.com/acme/rocket.git", GITHUB, token=True),
    Case("https://github.com/acme%2frocket.git", GITHUB, token=True),
    Case("https://github.com:0443/acme/rocket.git", GITHUB, token=True),
    *look_alikes(),
    # what curl's IDN makes of it is asked, what git makes of it is what we see
    Case("https://g\u0456thub.com/acme/rocket.git", "xn--gthub-n2e.com:443"),
    Case("https://\uff27ithub.com/acme/rocket.git", GITHUB),
    Case("https://github\u3002com/acme/rocket.git", GITHUB),
    Case("https://G\u0130THUB.com/acme/rocket.git", "xn--github-qyd.com:443"),
    # userinfo
    Case("https://github.com@evil.example/acme/rocket.git", EVIL),
    Case("https://github.com:443@evil.example/acme/rocket.git", EVIL),
    Case("https://github.com%3a443@evil.example/acme/rocket.git", EVIL),
    Case("https://github.com%2f@evil.example/acme/rocket.git", EVIL),
    Case("https://github.com\\@evil.example/acme/rocket.git", EVIL),
    Case("https://user:pass@evil.example/acme/rocket.git", EVIL),
    Case("https://x-access-token@evil.example/acme/rocket.git", EVIL),
    Case("https://x-access-token:@evil.example/acme/rocket.git", EVIL),
    Case("https://git@evil.example/acme/rocket.git", EVIL),
    Case("https://user@github.com/acme/rocket.git", GITHUB),
    Case("https://evil.example%2f@github.com/acme/rocket.git", GITHUB),
    Case("https://github.com@evil.example@github.com/acme/rocket.git", None),
    # escapes and separators
    Case("https://github.com%2eevil.example/acme/rocket.git", "github.com.evil.example:443"),
    Case("https://github.com#.evil.example/acme/rocket.git", GITHUB),
    Case("https://github.com?.evil.example/acme/rocket.git", GITHUB),
    Case("https://evil.example#@github.com/acme/rocket.git", EVIL),
    Case("https://evil.example?@github.com/acme/rocket.git", EVIL),
    Case("https://evil.example/?github.com/acme/rocket.git", EVIL),
    Case("https://evil.example/github.com/acme/rocket.git", EVIL),
    Case("https://evil.example/https://github.com/acme/rocket.git", EVIL),
    Case("https://evil.example//github.com/acme/rocket.git", EVIL),
    *[
        Case(f"https://github.com{rest}/acme/rocket.git", None)
        for rest in ("%40evil.example", "%2fevil", "%00.x", "%0a", "%0d")
    ],
    # other protocols
    Case("http://github.com/acme/rocket.git", "http://github.com:80"),
    Case("http://github.com:443/acme/rocket.git", "http://github.com:443"),
    Case("http://x-access-token@github.com/acme/rocket.git", "http://github.com:80"),
    Case("http://evil.example/acme/rocket.git", "http://evil.example:80"),
    # what is no repository of ours
    Case("https://github.com/acme/%2e%2e/evil/rocket.git", GITHUB),
    Case("https://github.com//acme//rocket.git", GITHUB),
    Case("https://github.com/other/repo.git", GITHUB),
    Case("https://github.com/acme/../other/rocket.git", GITHUB),
    # redirects, to us and away
    *[Case(f"https://evil.example/us/{status}.git", EVIL, token=True, then=GITHUB) for status in (301, 302, 307)],
    Case("http://github.com/to-github/301.git", "http://github.com:80", token=True, then=GITHUB),
    Case("https://evil.example/to/look-alike.git", EVIL, then="github.com.evil.example:443"),
    Case("https://evil.example/to/userinfo.git", EVIL),
    *[Case(f"https://github.com/acme/away-{status}.git", GITHUB, token=True, then=EVIL) for status in (301, 302, 307)],
    Case("https://github.com/acme/other-port.git", GITHUB, token=True, then="github.com:8443"),
    Case("https://github.com/acme/plain.git", GITHUB, token=True, then="http://github.com:80"),
    Case("https://github.com/acme/gist.git", GITHUB, token=True, then="gist.github.com:443"),
]
REDIRECTS = {
    **{f"{EVIL}/us/{status}": (status, "https://github.com/acme/rocket") for status in (301, 302, 307)},
    "http://github.com:80/to-github/301": (301, "https://github.com/acme/rocket"),
    f"{EVIL}/to/look-alike": (302, "https://github.com.evil.example/acme/rocket"),
    f"{EVIL}/to/userinfo": (302, "https://github.com@evil.example/acme/rocket"),
    **{f"{GITHUB}/acme/away-{status}": (status, "https://evil.example/acme/rocket") for status in (301, 302, 307)},
    f"{GITHUB}/acme/other-port": (302, "https://github.com:8443/acme/rocket"),
    f"{GITHUB}/acme/plain": (302, "http://github.com/acme/rocket"),
    f"{GITHUB}/acme/gist": (302, "https://gist.github.com/acme/rocket"),
}


def prepare(machine: Machine, how: str) -> None:
    """Set git up: "owners" and "all" as setup-git does, "everywhere" so that each host of the world is our concern."""
    github = machine.github
    github.settings.literal_tokens = [f"{MARK}-{number}" for number in range(50)]
    (installation,) = github.installations.values()
    names = {url.rpartition("/")[2].removesuffix(".git") for url in (case.url for case in CASES) if "/acme/" in url}
    for name in sorted(names - {"rocket", "rocket.wiki", "ROCKET"} | {"super", "big"}):
        if name.replace("-", "").isalnum():
            github.select(installation, github.add_repository(f"acme/{name}"))
    rocket = github.named("acme", "rocket")
    assert rocket is not None
    github.add_wiki(rocket)
    match how:
        case "all":
            machine.ghapp("setup-git", "--all")
        case "everywhere":
            machine.ghapp("setup-git", "--undo")
            configure(machine, FRONT)
    assert machine.fill()["password"].startswith(MARK)


def configure(machine: Machine, helper: Path) -> None:
    machine.git("config", "--global", "credential.helper", helper)
    machine.git("config", "--global", "credential.useHttpPath", "true")


def clone(machine: Machine, proxy: LeakProxy, number: int, url: str, *options: str) -> None:
    env = proxy.environment(f"n{number}")
    machine.git("clone", "-q", *options, url, machine.work / f"n{number}", check=False, env=env, timeout=50)


def clone_all(machine: Machine, proxy: LeakProxy, cases: list[Case]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(clone, machine, proxy, number, case.url) for number, case in enumerate(cases)]:
            done.result()


def differences(proxy: LeakProxy, how: str) -> list[tuple[str, str | None, str | None, bool]]:
    """Return the cases that did not go as expected, and how they went."""
    found = []
    for number, case in enumerate(CASES):
        visits = proxy.by(f"n{number}")
        first, last = (visits[0].target, visits[-1].target) if visits else (None, None)
        token = any(visit.holds(MARK) for visit in visits)
        if (first, last, token) != (case.target, case.then or case.target, case.token and case.unless != how):
            found.append((case.url, first, last, token))
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "how", ["everywhere", pytest.param("all", marks=pytest.mark.slow), pytest.param("owners", marks=pytest.mark.slow)]
)
def test_no_host_but_github_is_sent_a_token(ready: Machine, how: str) -> None:
    prepare(ready, how)
    with LeakProxy(ready.github, MARK, REDIRECTS) as proxy:
        clone_all(ready, proxy, CASES)

        assert proxy.holders() == {GITHUB}
        assert differences(proxy, how) == []
        assert len({case.url for number, case in enumerate(CASES) if proxy.by(f"n{number}")}) >= 60
    assert (ready.work / "n0" / "README.md").exists()


CARELESS = """#!/bin/sh
# Finds github.com anywhere in the host, as others have.
[ "$1" = get ] || exit 0
while read -r line && [ -n "$line" ]; do
    case $line in
    host=*github.com*) printf 'username=x-access-token\\npassword=%s\\n' "$TOKEN" ;;
    esac
done
"""


@pytest.mark.timeout(240)
def test_the_oracle_sees_a_leak(machine: Machine) -> None:
    """A helper that is not ours, and the same URLs: each host that it takes for GitHub is found out."""
    helper = machine.home / "careless"
    helper.write_text(CARELESS)
    helper.chmod(0o755)
    configure(machine, helper)
    machine.env["TOKEN"] = f"{MARK}-careless"
    with LeakProxy(machine.github, MARK, REDIRECTS) as proxy:
        clone_all(machine, proxy, CASES)

        leaks = proxy.holders() - {GITHUB}
    expected = {case.target for case in look_alikes() if case.target and "github.com" in case.target}
    assert leaks == {*expected, "http://github.com:80", "http://github.com:443"}
    assert len(leaks) >= 10


SUBMODULES = {
    "honest": "../rocket.git",
    "look-alike": "https://github.com.evil.example/acme/rocket.git",
    "port": "https://github.com:8443/acme/rocket.git",
    "userinfo": "https://x-access-token@evil.example/acme/rocket.git",
    "gist": "https://gist.github.com/acme/rocket.git",
    "plain": "http://github.com/acme/rocket.git",
    "away": "https://github.com/acme/away-302.git",
    "relative": "../../../evil.example/acme/rocket.git",
    "dot": "https://github.com./acme/rocket.git",
}


def test_a_submodule_on_another_host_is_sent_nothing(ready: Machine) -> None:
    prepare(ready, "everywhere")
    push_submodules(ready)
    with LeakProxy(ready.github, MARK, REDIRECTS) as proxy:
        clone(ready, proxy, 0, "https://github.com/acme/super.git", "--recurse-submodules", "-j4")

        asked = {visit.target for visit in proxy.visits}
        assert proxy.holders() == {GITHUB}
    others = {"github.com.evil.example:443", "github.com:8443", "gist.github.com:443", "github.com.:443"}
    assert asked == {GITHUB, EVIL, "http://github.com:80", *others}
    # One that fails keeps git from checking out any; what was fetched is there.
    assert [path.name for path in (ready.work / "n0" / ".git" / "modules").iterdir()] == ["honest"]


def push_submodules(machine: Machine) -> None:
    """Fill acme/super: every submodule at the commit that acme/rocket has."""
    commit = machine.git("ls-remote", "https://github.com/acme/rocket.git", "HEAD").stdout.split()[0]
    machine.git("clone", "-q", "https://github.com/acme/super.git")
    work = machine.work / "super"
    for name, url in SUBMODULES.items():
        machine.git("config", "-f", ".gitmodules", f"submodule.{name}.path", name, cwd=work)
        machine.git("config", "-f", ".gitmodules", f"submodule.{name}.url", url, cwd=work)
        machine.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{name}", cwd=work)
    machine.git("add", ".gitmodules", cwd=work)
    machine.git("commit", "-qm", "Add submodules", cwd=work)
    machine.git("push", "-q", cwd=work)


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")
@pytest.mark.parametrize("url", ["https://evil.example/acme/big.git/info/lfs", "https://github.com:8443/acme/big.git"])
def test_an_lfs_server_on_another_host_is_sent_nothing(ready: Machine, url: str) -> None:
    """The repository names it, in .lfsconfig."""
    prepare(ready, "everywhere")
    ready.git("lfs", "install", "--skip-repo")
    repository = ready.github.named("acme", "big")
    assert repository is not None
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    files = {".gitattributes": "*.bin filter=lfs\n", ".lfsconfig": f"[lfs]\n\turl = {url}\n", "a.bin": pointer}
    ready.github.commit(repository, files)
    with LeakProxy(ready.github, MARK, {}) as proxy:
        clone(ready, proxy, 0, "https://github.com/acme/big.git")

        assert proxy.holders() == {GITHUB}
        assert [visit for visit in proxy.visits if visit.target != GITHUB and b"/objects/batch" in visit.said]
