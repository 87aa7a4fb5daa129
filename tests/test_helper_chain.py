"""What git would do, judged by git itself: each helper of a configuration tells on a line that it was asked."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghapp import helper_chain
from ghapp.errors import GitConfigFailed


URL = "https://github.com/acme/rocket.git"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "asked").touch()
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "XDG_CONFIG_HOME": str(home / "none"),
    }


def asked(home: Path, url: str) -> list[str]:
    """Return the helpers that git itself asks for `url`."""
    (home / "asked").write_text("")
    protocol, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    subprocess.run(
        ["git", "credential", "fill"],
        input=f"protocol={protocol}\nhost={host}\npath={path}\n\n".encode(),
        env=environment(home),
        cwd=home,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return (home / "asked").read_text().split()


def teller(home: Path, name: str) -> str:
    return f"!f() {{ echo {name} >>{home}/asked; }}; f"


def configure(home: Path, sections: list[tuple[str, str]]) -> None:
    """Write one section for each (URL or "", name of a helper or "" for a reset)."""
    text = ""
    for url, name in sections:
        header = f'[credential "{url}"]' if url else "[credential]"
        helper = teller(home, name).replace("\\", "\\\\").replace('"', '\\"') if name else ""
        text += f'{header}\n\thelper = "{helper}"\n'
    (home / ".gitconfig").write_text(text)


def told(home: Path, url: str) -> list[str]:
    found = helper_chain.read(environment(home), home).helpers(url)
    return [helper.command.split()[3] for helper in found]


PATTERNS = st.sampled_from(
    [
        "",
        "https://github.com",
        "https://github.com/",
        "https://github.com/acme",
        "https://github.com/acme/",
        "https://github.com/acm",
        "https://github.com/acme/rocket.git",
        "https://github.com/acme/rocket",
        "https://GitHub.com/acme",
        "https://github.com/Acme",
        "https://github.com:443/acme",
        "https://github.com:8443",
        "http://github.com",
        "https://*.com",
        "https://*",
        "https://gist.github.com",
        "https://",
        "github.com",
        "https://x@github.com",
    ]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sections=st.lists(st.tuples(PATTERNS, st.sampled_from(["", "one", "two", "three"])), max_size=6),
    url=st.sampled_from([URL, "https://github.com/other/x", "https://github.com:8443/acme/x"]),
)
def test_the_helpers_are_those_that_git_asks(home: Path, sections: list[tuple[str, str]], url: str) -> None:
    configure(home, sections)

    assert told(home, url) == asked(home, url)


@pytest.mark.parametrize(
    ("command", "name", "ours"),
    [
        ("/opt/ghapp/bin/git-credential-ghapp", "ghapp", True),
        ("/opt/my\\ bin/git-credential-ghapp", "ghapp", True),
        ("ghapp", "ghapp", True),
        ("cache --timeout=0 --socket=/run/user/1/ghapp/git.sock", "cache", True),
        ("!/usr/bin/gh auth git-credential", "gh", False),
        ("!'/opt/x y/gh' auth git-credential", "gh", False),
        ("store", "store", False),
        ("store --file /x", "store", False),
        ("/usr/lib/git-core/git-credential-osxkeychain", "osxkeychain", False),
        ("/mnt/c/Program\\ Files/Git/git-credential-manager.exe", "manager", False),
        ("!", "!", False),
    ],
)
def test_a_helper_has_the_name_that_people_use(command: str, name: str, ours: bool) -> None:  # noqa: FBT001  # a column
    entry = helper_chain.Entry("global", "file:/x", "credential", "", "helper", command)
    helper = helper_chain.Helper(command, entry)

    assert helper.name == name
    assert helper.is_ours is ours


def test_a_program_is_named_without_its_escapes() -> None:
    entry = helper_chain.Entry("global", "file:/x", "credential", "https://github.com", "helper", "")

    assert (
        helper_chain.Helper("/opt/my\\ bin/git-credential-ghapp", entry).program == "/opt/my bin/git-credential-ghapp"
    )
    assert helper_chain.Helper("ghapp", entry).program == ""
    assert entry.key == "credential.https://github.com.helper"
    assert entry.file == "/x"


def test_what_git_is_given_without_a_helper_is_seen(home: Path) -> None:
    (home / ".gitconfig").write_text(
        '[http "https://github.com/"]\n\textraheader = Accept: x\n\textraheader = AUTHORIZATION: basic eDp5\n'
        '[url "git@github.com:"]\n\tinsteadOf = https://github.com/\n'
        '[url "https://github.com/acme/"]\n\tinsteadOf = https://github.com/acme/\n'
        '[credential]\n\tuseHttpPath = true\n[credential "https://github.com/acme"]\n\tuseHttpPath\n'
    )
    config = helper_chain.read(environment(home), home)

    assert [entry.value for entry in config.headers(URL)] == ["AUTHORIZATION: basic eDp5"]
    assert config.headers("https://example.com/x") == []
    assert config.rewritten(URL)[0] == URL
    assert config.rewritten("https://github.com/other/x")[0] == "git@github.com:other/x"
    assert config.rewritten("https://example.com/x") == ("https://example.com/x", None)
    last = config.last("credential", "usehttppath", URL)
    assert last is not None
    assert last.subsection == "https://github.com/acme"
    assert config.last("credential", "username", URL) is None


def test_a_broken_configuration_is_told_in_gits_words(home: Path) -> None:
    (home / ".gitconfig").write_text("[credential\n")

    with pytest.raises(GitConfigFailed, match="bad config line 1"):
        helper_chain.read(environment(home), home)


def test_without_git_there_is_nothing_to_read(home: Path) -> None:
    with pytest.raises(GitConfigFailed, match="git cannot be run"):
        helper_chain.read({"PATH": str(home)}, home)


def test_a_port_that_is_none_matches_nothing() -> None:
    assert not helper_chain.matches("https://github.com:99999999", URL)
