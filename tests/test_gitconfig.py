"""git's configuration, judged by git: real files, real helpers, no stand-ins."""

import asyncio
import errno
import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Ghapp, register
from fakes_process import closed_port, running
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from standin.model import App
from standin.server import StandIn

from ghapp import autostart, config, gitconfig, paths
from ghapp.cli import installations, setup_git
from ghapp.cli.daemon_client import call
from ghapp.errors import GitConfigFailed
from ghapp.gitconfig import OWNED_HEAD, Change, Identity, Scope


NOBODY = 65534

OURS = [("github.com", "acme")]

GH_LOGIN = '[credential "https://github.com"]\n\thelper = \n\thelper = !/usr/bin/gh auth git-credential\n'

ODD = [
    "plain",
    "with space",
    "two  spaces ",
    "quote'and\"quote",
    "dollar$HOME`id`$(id)",
    "hash#semi;amp&pipe|",
    "back\\slash\\n",
    "glob*?[a]{b,c}!(~)<>^",
    "grüße-✓",
    "-dash=%c:,@+",
]


@dataclass(frozen=True)
class Home:
    """A home directory, and git as run by who lives there."""

    path: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "HOME": str(self.path),
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C.UTF-8",
        }

    @property
    def config(self) -> Path:
        return self.path / ".gitconfig"

    @property
    def owned(self) -> Path:
        return self.path / "conf" / "ghapp" / "gitconfig"

    def git(self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            input=stdin,
            env=self.env | (env or {}),
            cwd=self.path,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return done.stdout

    def helper(self, name: str, password: str) -> Path:
        """Write a helper that answers, and keeps what it was asked beside it."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '#!/bin/sh\n{ echo "action=$1"; cat; } >>"$0.log"\n'
            f'[ "$1" = get ] && printf "username=x-access-token\\npassword={password}\\n"\nexit 0\n'
        )
        path.chmod(0o755)
        return path

    def fill(self, repository: str) -> str:
        """Ask git for a credential as a fetch does, and tell it that it was good."""
        answer = self.git(
            "credential",
            "fill",
            stdin=f"url=https://github.com/{repository}.git\n\n",
        )
        self.git("credential", "approve", stdin=answer + "\n")
        found = re.search("^password=(.*)$", answer, re.MULTILINE)
        return found[1] if found else ""

    def setup(self, scope: Scope = Scope.GLOBAL, text: str = "", cwd: Path | None = None) -> list[bool]:
        changes = gitconfig.setup(scope, text, self.owned, env=self.env, cwd=cwd or self.path)
        return [gitconfig.apply(change, patience=0) for change in changes]

    def undo(self, scope: Scope = Scope.GLOBAL, cwd: Path | None = None) -> list[Path]:
        changes = gitconfig.undo(scope, self.owned, env=self.env, cwd=cwd or self.path)
        return [change.path for change in changes if gitconfig.apply(change, patience=0)]


def log(helper: Path) -> str:
    path = helper.with_name(helper.name + ".log")
    return path.read_text() if path.exists() else ""


def identity(path: Path) -> tuple[int, int, bytes]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def nobodys_home() -> Iterator[Home]:
    """A home whose owner is not root, with us being that owner while the test runs."""
    path = Path(tempfile.mkdtemp()).resolve()
    if os.geteuid() != 0:
        yield Home(path)
        path.chmod(0o700)
        shutil.rmtree(path)
        return
    os.chown(path, NOBODY, NOBODY)
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield Home(path)
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        shutil.rmtree(path)


# What is rendered


def test_an_owner_gets_the_section_that_the_design_shows() -> None:
    text = gitconfig.render(OURS, Path("/opt/bin/git-credential-ghapp"))

    assert text == (
        '# Written by "ghapp setup-git" and rewritten whole: changes made here are lost.\n'
        "\n"
        '[credential "https://github.com/acme"]\n'
        "\thelper =\n"
        "\thelper = /opt/bin/git-credential-ghapp\n"
        "\tuseHttpPath = true\n"
        "\tusername = x-access-token\n"
    )


def test_a_login_with_capitals_gets_a_second_section_in_lower_case() -> None:
    text = gitconfig.render([("github.com", "Acme"), ("github.com", "zoo")], Path("/h"))

    assert re.findall(r'"(https:.*)"', text) == [
        "https://github.com/Acme",
        "https://github.com/acme",
        "https://github.com/zoo",
    ]


def test_all_owners_is_one_section_for_the_host_and_leaves_other_hosts_alone() -> None:
    owners = [("github.com", "acme"), ("ghes.example:8443", "ops")]

    text = gitconfig.render(owners, Path("/h"), all_owners_of=["GitHub.com"])

    assert re.findall(r'"(https:.*)"', text) == ["https://ghes.example:8443/ops", "https://github.com"]


def test_the_order_of_owners_changes_no_byte() -> None:
    owners = [("github.com", "b"), ("ghes.example", "a"), ("github.com", "A"), ("github.com", "b")]

    assert gitconfig.render(owners, Path("/h")) == gitconfig.render(owners[::-1], Path("/h"))


@pytest.mark.parametrize(
    ("host", "owner"),
    [("github.com", 'a"]\n[x'), ("a b", "acme"), ("github.com", ""), ("", "a"), ("h", "a/b")],
)
def test_what_could_end_a_section_name_is_refused(host: str, owner: str) -> None:
    with pytest.raises(GitConfigFailed, match="cannot be the name of a GitHub"):
        gitconfig.render([(host, owner)], Path("/h"))


def test_a_path_with_a_line_break_is_refused() -> None:
    with pytest.raises(GitConfigFailed, match="control character"):
        gitconfig.render(OURS, Path("/a\nb"))


def test_a_helper_in_a_throw_away_cache_is_refused() -> None:
    helper = Path("/home/me/.cache/uv/archive-v0/x1/bin/git-credential-ghapp")

    with pytest.raises(GitConfigFailed) as failed:
        gitconfig.render(OURS, helper)

    assert failed.value.hint == "uv tool install ghapp"


# What git makes of it


@pytest.mark.parametrize("odd", ODD)
def test_git_runs_the_helper_whatever_its_path_and_the_path_of_our_file(home: Home, odd: str) -> None:
    helper = home.helper(f"{odd}/{odd}", "ours")
    odd_home = replace(home, path=home.path / odd)

    odd_home.setup(text=gitconfig.render(OURS, helper))

    assert odd_home.fill("acme/rocket") == "ours"
    assert log(helper).startswith("action=get\n")
    assert "path=acme/rocket.git\n" in log(helper)


def test_ours_answers_for_our_owner_and_nobody_else_is_asked_or_told(home: Home) -> None:
    ours, theirs = home.helper("ours", "ours"), home.helper("theirs", "theirs")
    home.git("config", "--global", "credential.helper", str(theirs))
    home.git("config", "--global", "credential.username", "me")
    home.git("config", "--global", "credential.https://github.com.helper", str(theirs))

    home.setup(text=gitconfig.render(OURS, ours))

    assert home.fill("acme/rocket") == "ours"
    assert log(theirs) == ""
    assert log(ours).count("action=store") == 1
    assert "username=x-access-token" in log(ours)


@pytest.mark.parametrize("repository", ["other/repo", "acme-evil/repo", "acme.evil/repo", "Acme/repo"])
def test_the_users_helper_goes_on_answering_for_other_owners(home: Home, repository: str) -> None:
    ours, theirs = home.helper("ours", "ours"), home.helper("theirs", "theirs")
    home.git("config", "--global", "credential.helper", str(theirs))

    home.setup(text=gitconfig.render(OURS, ours))

    assert home.fill(repository) == "theirs"
    assert log(ours) == ""


def test_the_whole_host_is_ours_with_all_owners(home: Home) -> None:
    ours, theirs = home.helper("ours", "ours"), home.helper("theirs", "theirs")
    home.git("config", "--global", "credential.helper", str(theirs))

    home.setup(text=gitconfig.render([], ours, all_owners_of=["github.com"]))

    assert home.fill("whoever/repo") == "ours"
    assert home.git("config", "--get-urlmatch", "credential.useHttpPath", "https://github.com/x") == "true\n"
    assert log(theirs) == ""


def test_a_missing_included_file_is_silent(home: Home) -> None:
    home.setup()
    home.owned.unlink()

    done = subprocess.run(
        ["git", "config", "--global", "--list"], env=home.env, check=True, capture_output=True, cwd=home.path
    )

    assert done.stderr == b""


@pytest.mark.parametrize("last", ["\tname = Me\\", "\tname = Me\\\n", "\tname = Me", "\tname = Me # c\r\n"])
def test_the_last_value_of_the_user_keeps_its_meaning(home: Home, last: str) -> None:
    home.config.write_text("[user]\n" + last, newline="")

    home.setup(text=gitconfig.render(OURS, home.helper("ours", "ours")))

    assert home.git("config", "user.name") == "Me\n"
    assert home.fill("acme/rocket") == "ours"


# Where our block stands


def test_a_login_with_gh_takes_over_and_another_run_mends_it(home: Home) -> None:
    ours = home.helper("ours", "ours")
    theirs = home.helper("theirs", "theirs")
    text = gitconfig.render(OURS, ours)
    home.setup(text=text)
    with home.config.open("a") as file:
        file.write(GH_LOGIN.replace("!/usr/bin/gh auth git-credential", str(theirs)))
    assert home.fill("acme/rocket") == "theirs"

    changed = home.setup(text=text)

    assert changed == [False, True]
    assert home.fill("acme/rocket") == "ours"
    assert home.fill("other/repo") == "theirs"
    assert home.config.read_bytes().count(b"[include]") == 1


def test_an_include_that_git_adds_to_our_section_stays_the_users(home: Home) -> None:
    text = gitconfig.render(OURS, home.helper("ours", "ours"))
    home.setup(text=text)
    home.git("config", "--global", "--add", "include.path", "/theirs")

    home.setup(text=text)

    assert home.git("config", "--global", "--get-all", "include.path") == f"/theirs\n{home.owned}\n"
    assert home.undo() == [home.config, home.owned]
    assert home.config.read_text() == "[include]\n\tpath = /theirs\n"


def test_an_include_that_git_puts_in_place_of_ours_stays_the_users(home: Home) -> None:
    home.setup()
    home.git("config", "--global", "include.path", "/theirs")

    home.undo()

    assert home.config.read_text() == "[include]\n\tpath = /theirs\n"


def test_what_stands_behind_our_block_stays_where_it_is(home: Home) -> None:
    home.config.write_text("[user]\n\tname = Me")
    home.setup()
    with home.config.open("a") as file:
        file.write("# mine\n\n" + GH_LOGIN)

    home.undo()

    assert home.config.read_text() == "[user]\n\tname = Me\n# mine\n\n" + GH_LOGIN


def test_a_comment_behind_our_block_moves_nothing(home: Home) -> None:
    home.setup()
    with home.config.open("a") as file:
        file.write("\n; a comment\n# another")
    before = identity(home.config)

    assert home.setup() == [False, False]
    assert identity(home.config) == before


@pytest.mark.parametrize("before", ["", "[user]\n\tname = Me\n"])
def test_copies_of_our_block_become_one_at_the_end(before: str) -> None:
    section = gitconfig.include(Path("/owned"))
    once = gitconfig.append_block(before.encode(), section)

    again = gitconfig.append_block(once + GH_LOGIN.encode() + once, section)

    assert again.count(gitconfig.MARK) == once.count(gitconfig.MARK)
    assert again == (before + GH_LOGIN + before).encode() + once[len(before) :]


def test_a_block_for_another_path_is_replaced() -> None:
    old = gitconfig.append_block(b"[a]", gitconfig.include(Path("/old")))

    new = gitconfig.append_block(old, gitconfig.include(Path("/new")))

    assert new == gitconfig.append_block(b"[a]", gitconfig.include(Path("/new")))
    assert b"/old" not in new


def test_a_block_without_its_comment_is_made_whole_again() -> None:
    section = gitconfig.include(Path("/owned"))
    whole = gitconfig.append_block(b"", section)

    assert gitconfig.append_block(whole.split(b"\n", 1)[1], section) == whole


def test_the_second_run_touches_nothing(home: Home) -> None:
    text = gitconfig.render(OURS, Path("/h"))
    home.config.write_text("[user]\n\tname = Me")
    assert home.setup(text=text) == [True, True]
    before = [identity(home.config), identity(home.owned), home.path.stat().st_mtime_ns]

    assert home.setup(text=text) == [False, False]
    assert [identity(home.config), identity(home.owned), home.path.stat().st_mtime_ns] == before


# Undo

line = st.one_of(
    st.sampled_from([b"[user]", b"\tname = Me", b"[include]", b"\tpath = ~/x", b"", b"# c", b"\thelper =", b"v \\"]),
    st.sampled_from([b"[credential]", b"[include] path = /x", b"\r", b"\x00\xff# junk \xfe", b"\xef\xbb\xbf[core]"]),
    st.binary(max_size=12),
)
ending = st.sampled_from([b"\n", b"\r\n"])
contents = st.one_of(
    st.none(),
    st.builds(
        lambda lines, last: b"".join(one + end for one, end in lines) + last,
        st.lists(st.tuples(line, ending), max_size=6),
        line,
    ),
)
texts = st.sampled_from([gitconfig.include(Path("/o w/n#ed")), gitconfig.render(OURS, Path("/h"))])


@given(contents, texts)
@example(None, "[include]\n\tpath = /x\n")
@example(b"", "[include]\n\tpath = /x\n")
@example(b"[user]", "[include]\n\tpath = /x\n")
@example(b"[user]\r", "[include]\n\tpath = /x\n")
@example(b"\n", "[include]\n\tpath = /x\n")
def test_undo_gives_back_every_byte(before: bytes | None, text: str) -> None:
    after = gitconfig.append_block(before, text)

    assert after.startswith(before or b"")
    assert gitconfig.append_block(after, text) == after
    assert gitconfig.remove_block(after) == before


@given(contents, contents, texts)
def test_undo_leaves_what_was_put_behind_us_also_after_a_move(
    before: bytes | None, tail: bytes | None, text: str
) -> None:
    behind = b"[added]\n" + (tail or b"")
    assume(not any(gitconfig._is_ours(one) for one in behind.split(b"\n")))
    head = before or b""
    kept = head + (b"\n" if head and not head.endswith(b"\n") else b"") + behind

    appended = gitconfig.append_block(before, text) + behind
    moved = gitconfig.append_block(appended, text)

    assert gitconfig.remove_block(appended) == kept
    assert moved.startswith(kept)
    assert gitconfig.remove_block(moved) == kept


@given(contents)
def test_undo_without_our_block_changes_nothing(before: bytes | None) -> None:
    assert gitconfig.remove_block(before) == before


@given(contents)
@settings(max_examples=25, deadline=None)
def test_undo_gives_back_the_file_itself(before: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory))
        if before is not None:
            home.config.write_bytes(before)

        home.setup(text="# ours\n")
        assert home.config.exists()
        home.undo()

        assert (home.config.read_bytes() if home.config.exists() else None) == before
        assert not home.owned.exists()
        assert not [path for path in home.path.rglob("*") if path.suffix == ".lock"]


def test_a_file_that_we_created_goes_also_after_others_came_and_went(home: Home) -> None:
    home.setup()
    with home.config.open("a") as file:
        file.write(GH_LOGIN)
    home.setup()
    home.config.write_text(home.config.read_text().replace(GH_LOGIN, ""))

    home.undo()

    assert not home.config.exists()


def test_an_empty_file_of_the_users_stays(home: Home) -> None:
    home.config.touch()
    home.setup()

    home.undo()

    assert home.config.read_bytes() == b""


def test_undo_finds_our_block_in_either_of_the_users_files(home: Home) -> None:
    xdg = home.path / ".config" / "git" / "config"
    xdg.parent.mkdir(parents=True)
    xdg.write_text("[a]\n")
    home.setup()
    home.config.write_text("[user]\n")

    assert home.undo() == [xdg, home.owned]
    assert xdg.read_text() == "[a]\n"


def test_undo_can_leave_our_file_to_another_scope(home: Home) -> None:
    home.setup()

    changes = gitconfig.undo(Scope.GLOBAL, home.owned, env=home.env, cwd=home.path, keep_owned=True)

    assert [change.path for change in changes] == [home.config]


def test_undo_twice_does_nothing(home: Home) -> None:
    home.setup()

    assert home.undo() == [home.config, home.owned]
    assert home.undo() == []


def test_undo_of_a_file_that_vanished_meanwhile_does_nothing(home: Home) -> None:
    home.setup()
    changes = gitconfig.undo(Scope.GLOBAL, home.owned, env=home.env, cwd=home.path)
    home.config.unlink()
    home.owned.unlink()

    assert [gitconfig.apply(change) for change in changes] == [False, False]


# Writing


def test_a_plan_changes_nothing_and_shows_what_would(home: Home) -> None:
    home.config.write_text("[user]\n\tname = Me\n")

    owned, included = gitconfig.setup(Scope.GLOBAL, "# ours\n", home.owned, env=home.env, cwd=home.path)

    assert owned.diff() == f"--- /dev/null\n+++ {home.owned}\n@@ -0,0 +1 @@\n+# ours"
    assert f"+\tpath = {home.owned} # ghapp setup-git" in included.diff().split("\n")
    assert owned.is_needed
    assert not home.owned.exists()
    assert home.config.read_text() == "[user]\n\tname = Me\n"


def test_what_was_written_since_the_plan_is_kept(home: Home) -> None:
    changes = gitconfig.setup(Scope.GLOBAL, "", home.owned, env=home.env, cwd=home.path)
    home.git("config", "--global", "user.name", "Me")

    for change in changes:
        gitconfig.apply(change)

    assert home.git("config", "--global", "user.name") == "Me\n"
    assert home.config.read_bytes().endswith(b"# ghapp setup-git\n")


def test_what_another_did_while_we_waited_for_the_lock_is_not_done_again(home: Home) -> None:
    home.config.write_bytes(b"old")
    seen = []

    def edit(before: bytes | None) -> bytes | None:
        seen.append(before)
        if len(seen) == 1:
            home.config.write_bytes(b"new")
            return b"new"
        return before

    assert not gitconfig.apply(Change(home.config, b"old", b"new", edit))
    assert seen == [b"old", b"new"]
    assert not home.path.joinpath(".gitconfig.lock").exists()


def test_our_file_is_replaced_whole_in_a_directory_of_its_own(home: Home) -> None:
    assert gitconfig.write_owned(home.owned, "one")
    first = identity(home.owned)
    assert not gitconfig.write_owned(home.owned, "one")
    assert identity(home.owned) == first
    assert gitconfig.write_owned(home.owned, "two")

    assert home.owned.read_text() == "two"
    assert identity(home.owned)[0] != first[0]
    assert stat.S_IMODE(home.owned.stat().st_mode) == 0o644
    assert stat.S_IMODE(home.owned.parent.stat().st_mode) == 0o700
    assert [path.name for path in home.owned.parent.iterdir()] == ["gitconfig"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755])
def test_the_mode_is_kept(home: Home, mode: int) -> None:
    home.config.write_text("[user]\n")
    home.config.chmod(mode)

    home.setup()
    assert stat.S_IMODE(home.config.stat().st_mode) == mode
    home.undo()
    assert stat.S_IMODE(home.config.stat().st_mode) == mode


def test_a_new_file_gets_the_mode_that_git_would_give_it(home: Home) -> None:
    home.setup()

    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(home.config.stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_a_file_to_its_owner(home: Home) -> None:
    home.config.write_text("[user]\n")
    os.chown(home.config, 1234, 4321)

    home.setup()

    assert (home.config.stat().st_uid, home.config.stat().st_gid) == (1234, 4321)


def test_links_stay_and_their_target_is_replaced(home: Home) -> None:
    dotfiles = home.path / "dotfiles"
    dotfiles.mkdir()
    target = dotfiles / "gitconfig"
    target.write_text("[user]\n\tname = Me\n")
    (home.path / "between").symlink_to("dotfiles/gitconfig")
    home.config.symlink_to("between")

    home.setup()

    assert home.config.readlink() == Path("between")
    assert (home.path / "between").readlink() == Path("dotfiles/gitconfig")
    assert target.read_bytes().endswith(b"# ghapp setup-git\n")
    assert not target.is_symlink()
    home.undo()
    assert target.read_text() == "[user]\n\tname = Me\n"


def test_our_file_may_be_a_link_too(home: Home) -> None:
    home.owned.parent.mkdir(parents=True)
    home.owned.symlink_to("../elsewhere")

    home.setup(text="# ours\n")

    assert home.owned.is_symlink()
    assert (home.owned.parent.parent / "elsewhere").read_text() == "# ours\n"


def test_a_link_to_nothing_gets_its_target(home: Home) -> None:
    home.config.symlink_to("target")

    home.setup()
    assert (home.path / "target").is_file()
    home.undo()

    assert home.config.is_symlink()
    assert not (home.path / "target").exists()


def test_a_lock_that_somebody_holds_is_respected(home: Home) -> None:
    home.config.write_text("[user]\n")
    lock = home.path / ".gitconfig.lock"
    lock.write_text("theirs")

    with pytest.raises(GitConfigFailed) as failed:
        home.setup()

    assert failed.value.message == f"another process is editing {home.config}"
    assert failed.value.hint == f"if no git is running: rm {lock}"
    assert home.config.read_text() == "[user]\n"
    assert lock.read_text() == "theirs"


def test_the_lock_lies_beside_the_target_of_a_link_where_git_takes_it(home: Home) -> None:
    (home.path / "d").mkdir()
    (home.path / "d" / "real").write_text("")
    home.config.symlink_to("d/real")
    (home.path / "d" / "real.lock").touch()

    with pytest.raises(GitConfigFailed, match="another process"):
        home.setup()
    assert home.git("config", "--global", "user.name", "Me") == ""
    assert (home.path / "d" / "real").read_text() == ""


def test_a_lock_that_goes_within_our_patience_costs_nothing(home: Home) -> None:
    lock = home.path / ".gitconfig.lock"
    lock.touch()
    change = gitconfig.setup(Scope.GLOBAL, "", home.owned, env=home.env, cwd=home.path)[1]
    holder = subprocess.Popen(["sh", "-c", 'read _; rm "$0"', lock], stdin=subprocess.PIPE)
    assert holder.stdin
    holder.stdin.close()

    assert gitconfig.apply(change, patience=20)

    holder.wait()
    assert not lock.exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, OSError])
def test_whatever_happens_under_the_lock_removes_it(home: Home, failure: type[BaseException]) -> None:
    home.config.write_text("[user]\n")
    seen = []

    def edit(before: bytes | None) -> bytes | None:
        seen.append(before)
        if len(seen) > 1:
            assert home.path.joinpath(".gitconfig.lock").exists()
            raise failure
        return b"other"

    with pytest.raises(GitConfigFailed if failure is OSError else failure):
        gitconfig.apply(Change(home.config, None, None, edit))

    assert home.config.read_text() == "[user]\n"
    assert [path.name for path in home.path.iterdir()] == [".gitconfig"]


def test_a_kill_under_the_lock_leaves_the_file_whole_and_the_next_run_says_what_to_do(home: Home) -> None:
    home.config.write_text("[user]\n")
    program = """if True:
        import os, pathlib, signal, sys
        from ghapp.gitconfig import Change, apply
        config = pathlib.Path(sys.argv[1])
        def edit(before):
            if config.with_name(".gitconfig.lock").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return b"other"
        apply(Change(config, None, None, edit))
    """

    killed = subprocess.run([sys.executable, "-c", program, home.config], check=False)

    assert killed.returncode == -signal.SIGKILL
    assert home.config.read_text() == "[user]\n"
    with pytest.raises(GitConfigFailed, match="another process is editing"):
        home.setup()


def test_what_cannot_be_read_or_replaced_is_refused(home: Home) -> None:
    home.config.mkdir()

    with pytest.raises(GitConfigFailed, match="is not a regular file"):
        home.setup()


def test_a_device_in_place_of_the_file_is_never_replaced(home: Home) -> None:
    env = home.env | {"GIT_CONFIG_GLOBAL": "/dev/null"}

    with pytest.raises(GitConfigFailed, match="/dev/null is not a regular file"):
        gitconfig.setup(Scope.GLOBAL, "", home.owned, env=env, cwd=home.path)
    assert gitconfig.undo(Scope.GLOBAL, home.owned, env=env, cwd=home.path) == []


def test_a_loop_of_links_is_an_error(home: Home) -> None:
    home.config.symlink_to(home.config)

    with pytest.raises(GitConfigFailed, match="cannot read"):
        home.setup()


def test_a_missing_directory_is_an_error(home: Home) -> None:
    env = home.env | {"GIT_CONFIG_GLOBAL": "missing/gitconfig"}
    change = gitconfig.setup(Scope.GLOBAL, "", home.owned, env=env, cwd=home.path)[1]

    with pytest.raises(GitConfigFailed, match=r"cannot write .*: No such file or directory") as failed:
        gitconfig.apply(change)

    assert failed.value.hint == f"mkdir -p {home.path / 'missing'}"


def test_a_read_only_file_is_refused_and_kept(home: Home) -> None:
    home.config.write_text("[user]\n")
    home.config.chmod(0o444)

    with pytest.raises(GitConfigFailed, match="is read-only") as refused:
        home.setup()

    assert home.config.read_text() == "[user]\n"
    subprocess.run(("sh", "-c", refused.value.hint), check=True)
    assert home.config.stat().st_mode & 0o200
    assert not (home.path / ".gitconfig.lock").exists()


def test_a_read_only_file_with_our_block_is_no_error(home: Home) -> None:
    home.setup()
    home.config.chmod(0o444)

    assert home.setup() == [False, False]


def test_a_directory_that_we_may_not_write_is_an_error(nobodys_home: Home) -> None:
    nobodys_home.config.write_text("[user]\n")
    nobodys_home.setup()
    before = nobodys_home.config.read_bytes()
    nobodys_home.path.chmod(0o500)
    nobodys_home.owned.parent.chmod(0o500)

    with pytest.raises(GitConfigFailed, match=r"cannot write .*gitconfig: Permission denied"):
        nobodys_home.undo()
    with pytest.raises(GitConfigFailed, match=r"cannot write .*gitconfig: Permission denied"):
        gitconfig.write_owned(nobodys_home.owned, "new")
    with pytest.raises(GitConfigFailed, match=r"cannot delete .*gitconfig: Permission denied"):
        gitconfig.apply(Change(nobodys_home.owned, b"", None))

    assert nobodys_home.config.read_bytes() == before


def test_undo_passes_by_a_directory_that_we_may_not_enter(nobodys_home: Home) -> None:
    nobodys_home.setup()
    closed = nobodys_home.path / ".config" / "git"
    closed.mkdir(parents=True)
    (closed / "config").touch()
    closed.chmod(0)

    undone = nobodys_home.undo()

    closed.chmod(0o700)
    assert undone == [nobodys_home.config, nobodys_home.owned]


def test_a_file_that_we_may_not_read_is_an_error(nobodys_home: Home) -> None:
    nobodys_home.config.write_text("[user]\n")
    nobodys_home.config.chmod(0)

    with pytest.raises(GitConfigFailed, match=r"cannot read .*gitconfig: Permission denied"):
        nobodys_home.setup()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_is_refused(nobodys_home: Home) -> None:
    os.seteuid(0)
    nobodys_home.config.write_text("[user]\n")
    os.seteuid(NOBODY)

    with pytest.raises(GitConfigFailed, match="belongs to user 0"):
        nobodys_home.setup()

    assert nobodys_home.config.stat().st_uid == 0
    assert nobodys_home.config.read_text() == "[user]\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_group_that_we_are_not_in_is_lost_and_nothing_else(nobodys_home: Home) -> None:
    nobodys_home.config.write_text("[user]\n")
    os.seteuid(0)
    os.chown(nobodys_home.config, NOBODY, 1234)
    os.seteuid(NOBODY)

    nobodys_home.setup()

    assert nobodys_home.config.stat().st_gid == NOBODY
    assert nobodys_home.config.read_bytes().startswith(b"[user]\n")


# Which file


def test_the_global_file_is_the_one_git_would_write(home: Home) -> None:
    def find(**more: str) -> Path:
        return gitconfig.user_file(Scope.GLOBAL, home.env | more, home.path)

    xdg = home.path / "xdg" / "git" / "config"
    fallback = home.path / ".config" / "git" / "config"
    for file in (xdg, fallback):
        file.parent.mkdir(parents=True)

    assert find() == home.config
    assert find(GIT_CONFIG_GLOBAL="named") == home.path / "named"
    fallback.touch()
    assert find() == fallback
    assert find(XDG_CONFIG_HOME=str(home.path / "xdg")) == home.config
    xdg.touch()
    assert find(XDG_CONFIG_HOME=str(home.path / "xdg")) == xdg
    home.git("config", "--global", "user.name", "Me")
    assert "Me" in fallback.read_text()
    home.config.touch()
    assert find(XDG_CONFIG_HOME=str(home.path / "xdg")) == home.config


@pytest.mark.parametrize(
    ("env", "message"), [({"GIT_CONFIG_GLOBAL": ""}, "GIT_CONFIG_GLOBAL is empty"), ({}, "HOME is not set")]
)
def test_no_global_file_is_an_error(env: dict[str, str], message: str) -> None:
    with pytest.raises(GitConfigFailed, match=message):
        gitconfig.user_file(Scope.GLOBAL, env, Path("/"))


def test_the_local_file_is_that_of_the_repository_around(home: Home) -> None:
    home.git("init", "-q", "repo")
    inside = home.path / "repo" / "a" / "b"
    inside.mkdir(parents=True)
    config = home.path / "repo" / ".git" / "config"
    before = config.read_bytes()
    ours = home.helper("ours", "ours")

    home.setup(Scope.LOCAL, gitconfig.render(OURS, ours), cwd=inside)

    assert config.read_bytes().startswith(before)
    assert str(ours) in home.git("-C", "repo", "config", "--local", "--get-regexp", "credential.*helper")
    assert not home.config.exists()
    assert not home.owned.exists()
    home.undo(Scope.LOCAL, cwd=inside)
    assert config.read_bytes() == before


def test_undone_in_one_repository_the_users_own_set_up_stays(home: Home) -> None:
    home.git("init", "-q", "repo")
    ours = gitconfig.render(OURS, home.helper("ours", "ours"))
    home.setup(text=ours)
    home.setup(
        Scope.LOCAL,
        gitconfig.render([], home.helper("ours", "ours"), all_owners_of=["github.com"]),
        cwd=home.path / "repo",
    )
    assert home.owned.read_text() == ours

    home.undo(Scope.LOCAL, cwd=home.path / "repo")

    assert home.owned.read_text() == ours


def test_the_local_file_of_a_linked_worktree_is_that_of_its_repository(home: Home) -> None:
    home.git("init", "-q", "repo")
    author = ("-c", "user.name=a", "-c", "user.email=a")
    home.git("-C", "repo", *author, "commit", "-q", "--allow-empty", "-m", "x")
    home.git("-C", "repo", "worktree", "add", "-q", "../tree")

    file = gitconfig.user_file(Scope.LOCAL, home.env, home.path / "tree")

    assert file == home.path / "repo" / ".git" / "config"


def test_local_outside_a_repository_is_an_error(home: Home) -> None:
    env = home.env | {"GIT_CEILING_DIRECTORIES": str(home.path.parent)}

    with pytest.raises(GitConfigFailed, match="no repository at") as failed:
        gitconfig.user_file(Scope.LOCAL, env, home.path)

    assert failed.value.hint == "cd into a clone, or leave out --local"


def test_without_git_the_error_says_so(home: Home) -> None:
    with pytest.raises(GitConfigFailed, match="git cannot be run"):
        gitconfig.user_file(Scope.LOCAL, home.env | {"PATH": str(home.path)}, home.path)


@pytest.mark.parametrize("before", [b"[core]\r\n\tbare = false", b"", None])
def test_the_system_file_gets_our_sections_inline_and_undo_takes_them_out(home: Home, before: bytes | None) -> None:
    system = home.path / "etc gitconfig"
    if before is not None:
        system.write_bytes(before)
    env = {name: value for name, value in home.env.items() if name != "GIT_CONFIG_NOSYSTEM"}
    env["GIT_CONFIG_SYSTEM"] = str(system)
    ours = home.helper("our helper", "ours")
    text = gitconfig.render([("github.com", "Acme"), ("github.com", "acme")], ours)
    mask = os.umask(0o077)

    try:
        changes = gitconfig.setup(Scope.SYSTEM, text, home.owned, env=env, cwd=home.path)
        assert [gitconfig.apply(change) for change in changes] == [True]
    finally:
        os.umask(mask)

    assert not home.owned.exists()
    assert before is not None or stat.S_IMODE(system.stat().st_mode) == 0o644
    assert (
        home.git("config", "--system", "--get-all", "credential.https://github.com/Acme.helper", env=env)
        == "\n" + gitconfig._escaped_for_sh(str(ours)) + "\n"
    )
    assert not gitconfig.setup(Scope.SYSTEM, text, home.owned, env=env, cwd=home.path)[0].is_needed
    for change in gitconfig.undo(Scope.SYSTEM, home.owned, env=env, cwd=home.path):
        gitconfig.apply(change)
    assert (system.read_bytes() if system.exists() else None) == before


@pytest.mark.parametrize("answers", ["var", "edit", "neither"])
def test_the_system_file_is_found_with_old_git_and_new(home: Home, answers: str) -> None:
    """git learned `var GIT_CONFIG_SYSTEM` in 2.40; this one answers as the versions before and after did."""
    git = home.path / "bin" / "git"
    git.parent.mkdir()
    git.write_text(
        "#!/bin/sh\n"
        '[ -z "$GIT_CONFIG_NOSYSTEM" ] || exit 1\n'
        'case "$1" in\n'
        f"var) [ {answers} = var ] && echo /opt/etc/gitconfig ;;\n"
        f"config) [ {answers} = edit ] && $GIT_EDITOR /opt/etc/gitconfig ;;\n"
        "esac\n"
    )
    git.chmod(0o755)

    file = gitconfig.user_file(Scope.SYSTEM, home.env | {"PATH": f"{git.parent}:/bin:/usr/bin"}, home.path)

    assert file == Path("/etc/gitconfig" if answers == "neither" else "/opt/etc/gitconfig")


def test_a_system_file_that_is_named_is_meant_also_where_its_directory_is_missing(home: Home) -> None:
    """git before 2.40 names no file there, and the machine's own is another one."""
    named = home.path / "missing" / "gitconfig"

    assert gitconfig.user_file(Scope.SYSTEM, home.env | {"GIT_CONFIG_SYSTEM": str(named)}, home.path) == named


# The helper's own path


def test_the_helper_beside_the_running_command_wins_and_its_link_is_kept(home: Home) -> None:
    real = home.helper(f"venv/{gitconfig.HELPER}", "x")
    link = home.path / "bin" / gitconfig.HELPER
    link.parent.mkdir()
    link.symlink_to(real)

    assert gitconfig.installed_helper(str(link.parent / "ghapp"), [str(real.parent)]) == link


def test_the_helper_is_looked_for_where_scripts_are_installed(home: Home) -> None:
    helper = home.helper(f"scripts/{gitconfig.HELPER}", "x")
    home.helper(f"elsewhere/{gitconfig.HELPER}", "x")
    directories = [str(home.path / "missing"), str(helper.parent)]

    assert gitconfig.installed_helper(str(home.path / "elsewhere" / "pytest"), directories) == helper
    assert gitconfig.installed_helper(str(home.path / "ghapp"), directories) == helper


def test_the_helper_of_a_relative_command_is_absolute(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = home.helper(gitconfig.HELPER, "x")
    monkeypatch.chdir(home.path)

    assert gitconfig.installed_helper("./ghapp", []) == helper


def test_a_helper_that_cannot_run_is_no_helper(home: Home) -> None:
    helper = home.helper(gitconfig.HELPER, "x")
    helper.chmod(0o644)

    with pytest.raises(GitConfigFailed, match="no executable git-credential-ghapp in") as failed:
        gitconfig.installed_helper(str(home.path / "ghapp"), [])

    assert failed.value.hint == "reinstall ghapp"


def test_the_default_places_are_those_of_this_python(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(home.path / "ghapp")])
    helper = home.helper(gitconfig.HELPER, "x")

    assert gitconfig.installed_helper() == helper


@pytest.mark.parametrize(
    "prefix",
    [
        "/home/me/.cache/uv/archive-v0/Xy1",
        "/home/me/.cache/uv/environments-v2/ghapp-1",
        "/home/me/.cache/uv/builds-v0/.tmpX",
        "/x/uv/cache/archive-v12/a/bin/git-credential-ghapp",
        "/home/me/.local/pipx/.cache/0a1b2c",
        "/home/me/.local/share/pipx/.cache/0a1b2c/bin",
        "/home/me/.cache/pipx/0a1b2c",
        "/Users/me/Library/Caches/pipx/0a1b2c",
        "/var/cache/pipx/0a1b2c",
    ],
)
def test_a_throw_away_prefix_is_known(prefix: str) -> None:
    assert autostart.is_throw_away(prefix)


@pytest.mark.parametrize(
    "prefix",
    [
        "/usr",
        "/home/me/.local/share/uv/tools/ghapp",
        "/home/uv/src/archive",
        "/archive-v0/uv/x",
        "/home/me/.local/share/pipx/venvs/ghapp",
        "/home/me/.local/pipx",
        "/cache/pipx/venvs/ghapp",
        "/opt/pipx/x",
        "pipx/x",
    ],
)
def test_a_lasting_prefix_is_not_taken_for_a_throw_away_one(prefix: str) -> None:
    assert not autostart.is_throw_away(prefix)


# What is by owner: identity, proactive, rewrite-ssh


BOT = Identity("github.com", "acme-bot[bot]", 1007)


def checkout(home: Home, url: str) -> Path:
    path = home.path / f"checkout-{len(list(home.path.glob('checkout-*')))}"
    home.git("init", "-q", str(path))
    home.git("-C", str(path), "remote", "add", "origin", url)
    return path


def author(home: Home, url: str) -> str:
    return home.git("-C", str(checkout(home, url)), "var", "GIT_AUTHOR_IDENT").rsplit(" ", 2)[0]


def set_up_identity(home: Home, *, rewrite_ssh: bool = False) -> list[Path]:
    helper = home.helper("h", "x")
    files = {OURS[0]: BOT.path(home.owned)}
    text = gitconfig.render([("github.com", "Acme"), *OURS], helper, identities=files, rewrite_ssh=rewrite_ssh)
    changes = gitconfig.setup(Scope.GLOBAL, text, home.owned, env=home.env, cwd=home.path, identities=[BOT])
    return [change.path for change in changes if gitconfig.apply(change, patience=0)]


def old_git(home: Home) -> bool:
    return gitconfig.git_version(home.env, home.path) < (2, 36)


def test_the_bot_commits_in_repositories_of_its_owner_and_the_person_in_all_others(home: Home) -> None:
    if old_git(home):
        pytest.skip("git before 2.36 does not include by a remote's URL")
    home.config.write_text("[user]\n\tname = Me\n\temail = me@example.com\n")

    set_up_identity(home)

    bot = "acme-bot[bot] <1007+acme-bot[bot]@users.noreply.github.com>"
    assert author(home, "https://github.com/acme/rocket.git") == bot
    for url in (
        "https://github.com/acmes/rocket.git",
        "https://github.com/globex/acme.git",
        "https://example.com/acme/rocket.git",
        "git@github.com:acme/rocket.git",
    ):
        assert author(home, url) == "Me <me@example.com>", url


def test_with_ssh_remotes_rewritten_the_bot_commits_there_too(home: Home) -> None:
    if old_git(home):
        pytest.skip("git before 2.36 does not include by a remote's URL")

    set_up_identity(home, rewrite_ssh=True)

    for url in ("git@github.com:acme/rocket.git", "ssh://git@github.com/acme/rocket.git"):
        assert author(home, url).startswith("acme-bot[bot] <1007+"), url


def test_only_remotes_of_the_owner_are_rewritten_in_either_spelling(home: Home) -> None:
    text = gitconfig.render([("github.com", "Acme")], home.helper("h", "x"), rewrite_ssh=True)
    home.setup(text=text)

    def seen(url: str) -> str:
        return home.git("ls-remote", "--get-url", url).strip()

    assert seen("git@github.com:Acme/rocket.git") == "https://github.com/Acme/rocket.git"
    assert seen("git@github.com:acme/rocket.git") == "https://github.com/acme/rocket.git"
    assert seen("ssh://git@github.com/acme/rocket") == "https://github.com/acme/rocket"
    for url in ("git@github.com:acmes/x.git", "git@example.com:acme/x.git", "ssh://git@github.com/globex/x"):
        assert seen(url) == url


def test_proactive_is_for_the_owner_even_where_the_helper_is_for_the_host(home: Home) -> None:
    text = gitconfig.render(OURS, home.helper("h", "x"), all_owners_of=["github.com"], proactive=True)
    home.setup(text=text)

    def asked(url: str) -> str:
        return home.git("config", "--get-urlmatch", "http.proactiveAuth", url).strip()

    assert asked("https://github.com/acme/rocket.git") == "basic"
    assert asked("https://github.com/globex/press.git") == ""
    assert (
        home.git("config", "--get-urlmatch", "credential.useHttpPath", "https://github.com/globex/x").strip() == "true"
    )


def test_what_is_left_out_the_next_time_is_gone_and_undo_leaves_nothing(home: Home) -> None:
    home.config.write_bytes(b"[user]\n\tname = Me")
    theirs = home.owned.with_name("gitconfig-mine")
    plain = gitconfig.render(OURS, home.helper("h", "x"))
    assert set_up_identity(home) == [BOT.path(home.owned), home.owned, home.config]
    theirs.write_text("[user]\n")

    assert home.setup(text=plain) == [True, False, True]
    assert home.owned.read_text() == plain
    assert not BOT.path(home.owned).exists()

    set_up_identity(home)
    assert home.undo() == [home.config, home.owned, BOT.path(home.owned)]
    assert home.config.read_bytes() == b"[user]\n\tname = Me"
    assert list(home.owned.parent.iterdir()) == [theirs]


def test_a_second_run_with_an_identity_changes_nothing(home: Home) -> None:
    set_up_identity(home)

    assert set_up_identity(home) == []


def test_an_identity_cannot_smuggle_lines_into_its_file() -> None:
    for login in ("a\n[core]\n\tsshCommand = x[bot]", "a b[bot]", "acme-bot", "[bot]"):
        with pytest.raises(GitConfigFailed, match="cannot be the name of a GitHub bot"):
            Identity("github.com", login, 1).render()

    assert Identity("ghe.example.com:8443", "x[bot]", 1).path(Path("/c/gitconfig")) == Path(
        "/c/gitconfig-ghe.example.com-8443-x"
    )
    assert BOT.render().startswith(OWNED_HEAD)


def test_a_git_that_does_not_say_its_version_counts_as_new(home: Home, tmp_path: Path) -> None:
    assert (2, 20) <= gitconfig.git_version(home.env, home.path) < (9, 0)
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\necho who knows\n")
    fake.chmod(0o755)

    assert gitconfig.git_version(home.env | {"PATH": str(tmp_path)}, home.path) > (9, 0)


@pytest.fixture
async def served(github: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[App]:
    """An app on acme, another on globex, where it is suspended, and a daemon in this loop."""
    app = github.add_app("acme-bot", {"contents": "write"})
    github.install(app, "acme", repositories=["rocket"])
    other = github.add_app("globex-bot", {"contents": "write"})
    github.suspend(github.install(other, "globex"))
    github.add_repository("acme/rocket")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    register(other, tmp_path)
    register(app, tmp_path)
    helper = tmp_path / "bin" / gitconfig.HELPER
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\n")
    helper.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(helper.with_name("ghapp"))])
    async with running(Path(paths.runtime_dir())):
        yield app


async def test_the_identity_is_the_bot_user_and_not_the_app(served: App, ghapp: Ghapp, github: StandIn) -> None:
    bot = github.accounts["acme-bot[bot]"]
    assert bot.id != served.id

    done = await ghapp.asked("setup-git", "--identity", "--rewrite-ssh", "--proactive")

    assert done.code == 0
    email = f"{bot.id}+acme-bot[bot]@users.noreply.github.com"
    assert f"in repositories of acme commits are by acme-bot[bot] <{email}>" in done.err
    assert "ghapp: warning: globex gets no identity: the app's installation on globex is suspended (E23)" in done.err
    beside = config.config_dir() / "gitconfig-github.com-acme-bot"
    assert f"email = {email}\n" in beside.read_text()
    owned = (config.config_dir() / "gitconfig").read_text()
    assert owned.count("[includeIf ") == 3
    assert owned.count("[url ") == owned.count("[http ") == 2

    again = await ghapp.asked("setup-git", "--no-identity")

    assert f"removed {beside}" in again.err
    assert "--identity was taken out; this puts it back: ghapp setup-git --identity\n" in again.err
    assert not beside.exists()


async def test_with_all_the_owners_are_asked_for_only_what_is_by_owner(
    served: App, ghapp: Ghapp, github: StandIn
) -> None:
    assert (await ghapp.asked("setup-git", "--all")).code == 0
    assert not [request for request in github.requests if request.path == "/app/installations"]

    done = await ghapp.asked("setup-git", "--all", "--rewrite-ssh")

    assert "https://github.com is answered by ghapp" in done.err
    owned = (config.config_dir() / "gitconfig").read_text()
    assert owned.count("[credential ") == 1
    assert owned.count("[url ") == 2
    assert served.slug not in owned


async def test_github_failing_takes_no_identity_out(served: App, ghapp: Ghapp, github: StandIn) -> None:
    await ghapp.asked("setup-git", "--identity")
    owned = config.config_dir() / "gitconfig"
    before = owned.read_text()
    del github.accounts[f"{served.slug}[bot]"]
    github.add_account("Acme-Bot[bot]")

    done = await ghapp.asked("setup-git", "--identity")

    assert done.code == 1
    assert "GitHub's user acme-bot[bot] came without login and id (E28)" in done.err
    assert owned.read_text() == before


@pytest.mark.usefixtures("served")
async def test_what_this_git_ignores_is_said(ghapp: Ghapp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "bin" / "git"
    git.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo git version 2.30.2 && exit\nexec {shutil.which("git")} "$@"\n'
    )
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")

    done = await ghapp.asked("setup-git", "--identity", "--proactive")

    assert "warning: git 2.30 ignores --identity; git 2.36 is the first that knows it" in done.err
    assert "warning: git 2.30 ignores --proactive; git 2.46 is the first that knows it" in done.err
    assert "ignores" not in (await ghapp.asked("setup-git")).err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--identity", "--system"),
        ("--identity", "--local"),
        ("--undo", "--proactive"),
        ("--undo", "--no-identity"),
        ("--undo", "--all"),
        ("--undo", "--host", "github.com"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(ghapp: Ghapp, arguments: tuple[str, ...]) -> None:
    assert ghapp("setup-git", *arguments).code == 2


# What was chosen before


FEATURES = {
    "--identity": "[includeIf ",
    "--rewrite-ssh": "[url ",
    "--proactive": "[http ",
    "--all": '"https://github.com"]',
}


def features(text: str) -> set[str]:
    return {option for option, sign in FEATURES.items() if sign in text}


@pytest.mark.parametrize(
    "chosen", [options for count in range(5) for options in itertools.combinations(FEATURES, count)], ids=" ".join
)
async def test_what_was_chosen_stays_in_a_run_that_does_not_speak_of_it(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    chosen: tuple[str, ...],
) -> None:
    owned = config.config_dir() / "gitconfig"
    await ghapp.asked("setup-git", *chosen)
    once = owned.read_text()
    assert features(once) == set(chosen)

    again = await ghapp.asked("setup-git")

    assert (again.code, owned.read_text()) == (0, once)
    assert "taken out" not in again.err
    for option in sorted(FEATURES.keys() - set(chosen)):
        assert (await ghapp.asked("setup-git", option)).code == 0
        assert features(owned.read_text()) == {*chosen, option}
        away = await ghapp.asked("setup-git", option.replace("--", "--no-"))
        assert f"{option} was taken out; this puts it back: ghapp setup-git {option}\n" in away.err
        assert owned.read_text() == once


@pytest.mark.parametrize("odd", ["plain/bin", 'with space\'s/"bin"', "back\\slash/#;$bin"])
def test_what_was_rendered_is_read_back(odd: str) -> None:
    helper = Path("/home/me") / odd / gitconfig.HELPER
    owners = (("ghe.example:8443", "globex"), ("github.com", "Acme"), ("github.com", "a.b_c"))
    files = {owners[1]: Path("/home/me") / odd / "gitconfig-x"}

    found = gitconfig.read_back(
        gitconfig.render(
            reversed(owners),
            helper,
            all_owners_of=["ghe.example:8443"],
            identities=files,
            proactive=True,
            rewrite_ssh=True,
            left_out=["a.example", "b.example"],
        )
    )

    assert found == gitconfig.Written(
        helper=str(helper),
        hosts=frozenset({"ghe.example:8443"}),
        owners=owners,
        identities=files,
        identity=True,
        proactive=True,
        rewrite_ssh=True,
        left_out=frozenset({"a.example", "b.example"}),
    )
    assert gitconfig.read_back("") == gitconfig.Written()
    assert gitconfig.read_back("[user]\n\tname = Me\n[alias]\n") == gitconfig.Written()


async def test_a_dry_run_tells_what_would_go(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
) -> None:
    await ghapp.asked("setup-git", "--all", "--proactive")

    done = await ghapp.asked("setup-git", "--no-all", "--no-proactive", "--dry-run")

    assert "--all, --proactive would be taken out; this puts it back: ghapp setup-git --all --proactive\n" in done.err
    assert features((config.config_dir() / "gitconfig").read_text()) == {"--all", "--proactive"}


async def test_an_identity_that_was_wanted_comes_as_soon_as_it_can(served: App, ghapp: Ghapp, github: StandIn) -> None:
    owned = config.config_dir() / "gitconfig"
    (installation,) = [entry for entry in github.installations.values() if entry.account.login == "acme"]
    assert served.slug == "acme-bot"
    github.suspend(installation)
    await ghapp.asked("setup-git", "--identity")
    assert "[includeIf " not in owned.read_text()

    github.unsuspend(installation)
    await ghapp.asked("setup-git")
    once = owned.read_text()
    assert "[includeIf " in once

    github.suspend(installation)
    await ghapp.asked("setup-git")
    assert owned.read_text() == once
    assert (config.config_dir() / "gitconfig-github.com-acme-bot").exists()


async def test_a_repository_keeps_what_was_chosen_for_it(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "repo").mkdir()
    home.git("init", "-q", str(tmp_path / "repo"))
    monkeypatch.chdir(tmp_path / "repo")
    await ghapp.asked("setup-git", "--local", "--all", "--rewrite-ssh")
    once = (tmp_path / "repo/.git/config").read_text()

    await ghapp.asked("setup-git", "--local")

    assert (tmp_path / "repo/.git/config").read_text() == once
    assert "[url " in once
    gone = await ghapp.asked("setup-git", "--local", "--no-rewrite-ssh")
    assert "--rewrite-ssh was taken out; this puts it back: ghapp setup-git --local --rewrite-ssh\n" in gone.err


async def test_a_host_that_was_left_out_stays_out_until_it_is_named(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    tmp_path: Path,
) -> None:
    table = {"name": "ghe", "host": "ghe.example", "app_id": 9, "keys": [f"file:{tmp_path / 'acme-bot.pem'}"]}
    config.put_app(config.config_file(), table)
    owned = config.config_dir() / "gitconfig"

    await ghapp.asked("setup-git", "--all", "--host", "github.com")
    again = await ghapp.asked("setup-git")
    back = "ghapp setup-git --host ghe.example --host github.com"
    assert f"ghe.example stays left out, as chosen before; to have it: {back}\n" in again.err
    assert "https://ghe.example" not in owned.read_text()

    both = await ghapp.asked(*back.split()[1:])
    assert "https://ghe.example is answered by ghapp\n" in both.err
    assert "leaveOut" not in owned.read_text()

    one = await ghapp.asked("setup-git", "--host", "github.com")
    assert f"ghe.example was taken out; this puts it back: {back}\n" in one.err


# An app that cannot be asked


def kill_key(github: StandIn, slug: str) -> None:
    (app,) = [app for app in github.apps.values() if app.slug == slug]
    app.remove_key(app.private_key_pem)


@pytest.mark.parametrize("options", [(), ("--identity", "--proactive"), ("--all", "--rewrite-ssh")], ids=" ".join)
async def test_owners_of_an_app_that_cannot_be_asked_stay_as_they_are_and_the_others_are_mended(
    served: App, ghapp: Ghapp, github: StandIn, options: tuple[str, ...]
) -> None:
    owned = config.config_dir() / "gitconfig"
    github.unsuspend(next(entry for entry in github.installations.values() if entry.account.login == "globex"))
    assert (await ghapp.asked("setup-git", *options)).code == 0
    once = owned.read_text()
    kill_key(github, "globex-bot")
    github.install(served, "Initech")

    done = await ghapp.asked("setup-git")

    assert done.code == 1
    assert "ghapp: warning: globex-bot could not be asked where it is installed, what was written for it" in done.err
    assert re.search("hint: .* with the app's page: https://github.com/settings/apps, .*\n$", done.err)
    assert "taken out" not in done.err
    assert not set(once.splitlines()) - set(owned.read_text().splitlines())
    assert "Initech" in owned.read_text()
    for file in gitconfig.read_back(once).identities.values():
        assert file.is_file()

    kill_key(github, "acme-bot")
    with (Path.home() / ".gitconfig").open("a") as mine:
        mine.write('[credential "https://github.com"]\n\thelper = store\n')
    before = owned.read_text()
    assert (await ghapp.asked("setup-git")).code == 1
    assert owned.read_text() == before
    assert (Path.home() / ".gitconfig").read_text().endswith("# ghapp setup-git\n")


async def test_an_owner_of_another_host_or_of_nobodys_app_does_not_stay(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    github: StandIn,
) -> None:
    """What is taken out is what no app that cannot be asked may answer for."""
    table = next(app for app in config.load(config.config_file()).apps if app.name == "globex-bot")
    new = {"name": table.name, "app_id": table.app_id, "keys": list(table.keys), "owners": ["globex"]}
    config.put_app(config.config_file(), new)
    await ghapp.asked("setup-git")
    kill_key(github, "globex-bot")
    github.uninstall(next(entry for entry in github.installations.values() if entry.account.login == "acme"))
    await ghapp.asked("setup-git")

    owned = (config.config_dir() / "gitconfig").read_text()

    assert "https://github.com/globex" in owned
    assert "https://github.com/acme" not in owned


async def test_where_nothing_is_known_and_no_app_can_be_asked_that_is_the_error(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    github: StandIn,
) -> None:
    kill_key(github, "globex-bot")
    kill_key(github, "acme-bot")

    done = await ghapp.asked("setup-git")

    assert (done.code, done.err.count("ghapp: error: ")) == (1, 1)
    assert "E22" in done.err
    assert not (config.config_dir() / "gitconfig").exists()


async def test_the_installations_of_the_apps_that_work_are_listed(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    github: StandIn,
) -> None:
    kill_key(github, "globex-bot")

    table = await ghapp.asked("installations")
    machine = await ghapp.asked("installations", "--json")

    assert (table.code, machine.code) == (1, 1)
    assert [entry["account"] for entry in json.loads(machine.out)] == ["acme"]
    assert [line.split()[0] for line in table.out.splitlines()] == ["OWNER", "acme"]
    assert table.err.startswith("ghapp: error: globex-bot: GitHub does not accept ")
    assert "ghapp: hint: " in table.err

    kill_key(github, "acme-bot")
    nothing = await ghapp.asked("installations", "--json")
    assert (nothing.code, nothing.out, nothing.err.count("ghapp: error: ")) == (1, "[]\n", 2)


async def test_a_network_that_fails_all_apps_is_named_once(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def counted(method: str, **params: object) -> object:
        asked.append(f"{method} {' '.join(map(str, params.values()))}")
        return call(method, **params)

    monkeypatch.setattr(installations, "call", counted)
    with config.config_file().open("a") as file:
        file.write(f'[network]\nproxy = "http://127.0.0.1:{closed_port()}"\n')
    await asyncio.to_thread(call, "reload")

    done = await ghapp.asked("installations")

    assert done.code == 1
    assert done.err.startswith("ghapp: error: globex-bot, acme-bot: cannot connect to the proxy 127.0.0.1:")
    assert done.err.count("ghapp: error: ") == 1
    assert asked == ["status ", "installations globex-bot True"]  # the second would wait as long for the same


async def test_a_locked_daemon_is_not_an_apps_fault(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
) -> None:
    await ghapp.asked("lock")

    done = await ghapp.asked("installations")

    assert done.err == "ghapp: error: ghapp is locked (E42)\nghapp: hint: ghapp unlock\n"


# What the daemon brings up to date


@pytest.mark.parametrize("options", [(), ("--identity", "--proactive"), ("--all", "--rewrite-ssh")], ids=" ".join)
async def test_an_owner_that_comes_or_goes_is_followed_with_what_was_chosen(
    served: App, ghapp: Ghapp, github: StandIn, options: tuple[str, ...]
) -> None:
    owned = config.config_dir() / "gitconfig"
    await ghapp.asked("setup-git", *options)
    once = owned.read_text()
    fresh = github.install(served, "Initech")

    dry = await ghapp.asked("setup-git", "--dry-run")
    assert owned.read_text() == once  # whoever only looks at what would be changed changes nothing
    assert "+++" in dry.out
    await ghapp.asked("installations")

    followed = owned.read_text()
    assert "Initech" in followed
    await ghapp.asked("setup-git")
    assert owned.read_text() == followed
    github.uninstall(fresh)
    await asyncio.to_thread(call, "installations")
    assert owned.read_text() == once


@pytest.mark.parametrize("options", [None, ("--all",)])
async def test_where_nobody_chose_owners_nothing_is_followed(
    served: App, ghapp: Ghapp, github: StandIn, options: tuple[str, ...] | None
) -> None:
    owned = config.config_dir() / "gitconfig"
    if options is not None:
        await ghapp.asked("setup-git", *options)
    before = owned.read_bytes() if owned.exists() else None
    github.install(served, "initech")

    assert (await ghapp.asked("installations")).code == 0

    assert (owned.read_bytes() if owned.exists() else None) == before


async def test_nobody_goes_while_one_app_was_not_asked_yet(served: App, github: StandIn) -> None:
    owned = config.config_dir() / "gitconfig"
    owned.parent.mkdir(parents=True, exist_ok=True)
    text = gitconfig.render([("github.com", "gone"), ("github.com", "globex")], Path("/h/git-credential-ghapp"))
    owned.write_text(text)
    assert served.slug == "acme-bot"

    await asyncio.to_thread(call, "installations", app="acme-bot")
    assert owned.read_text() == text
    kill_key(github, "acme-bot")
    await asyncio.to_thread(call, "installations", app="globex-bot")

    assert [owner for _, owner in gitconfig.read_back(owned.read_text()).owners] == ["acme", "globex"]


async def test_a_file_that_cannot_be_written_leaves_the_list_as_it_is(
    served: App, ghapp: Ghapp, github: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    await ghapp.asked("setup-git")
    github.install(served, "initech")
    owned = config.config_dir() / "gitconfig"
    owned.write_text(owned.read_text().replace("helper = /", "helper = /home/me/.cache/uv/archive-v0/x"))

    assert (await ghapp.asked("installations")).code == 0

    assert "git's owners stay as they are: " in caplog.text


def test_a_host_that_was_left_out_is_not_followed(tmp_path: Path) -> None:
    owned = tmp_path / "gitconfig"
    text = gitconfig.render([("github.com", "acme")], Path("/h/git-credential-ghapp"), left_out=["ghe.example"])
    owned.write_text(text)

    assert not gitconfig.follow(owned, {"a": [("github.com", "Acme")], "b": [("ghe.example", "globex")]})
    assert not gitconfig.follow(owned, {"a": [], "b": []})
    assert owned.read_text() == text
    owned.write_text(text.replace("# Written by", "# by hand, not"))
    assert not gitconfig.follow(owned, {"a": [("github.com", "initech")]})
    owned.write_text(gitconfig.render([], Path("/h/git-credential-ghapp"), all_owners_of=["github.com"]))
    assert not gitconfig.follow(owned, {"a": [("github.com", "acme")], "b": [("ghe.example", "globex")]})


# Two at the same moment


async def test_what_two_chose_at_the_same_moment_is_kept_of_both(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    github: StandIn,
) -> None:
    hold = threading.Event()
    fault = github.faults.add("/app/installations", hold=hold)
    owned = config.config_dir() / "gitconfig"
    first = asyncio.create_task(asyncio.to_thread(setup_git.configure, Scope.GLOBAL, rewrite_ssh=True))
    await asyncio.to_thread(fault.reached.wait)
    second = asyncio.create_task(asyncio.to_thread(setup_git.configure, Scope.GLOBAL, whole_host=True))

    assert not gitconfig.follow(owned, {"acme-bot": [("github.com", "initech")]})
    hold.set()
    await first
    await second

    assert features(owned.read_text()) == {"--all", "--rewrite-ssh"}
    assert (await ghapp.asked("setup-git")).err.startswith("nothing to change\n")


def test_the_daemon_does_not_follow_while_somebody_chooses(tmp_path: Path) -> None:
    owned = tmp_path / "gitconfig"
    owned.write_text(gitconfig.render([("github.com", "acme")], Path("/h/git-credential-ghapp")))
    before, now = owned.read_text(), {"a": [("github.com", "initech")]}

    with gitconfig.turn(tmp_path) as is_ours:
        assert is_ours
        assert not gitconfig.follow(owned, now)
        assert owned.read_text() == before

    assert gitconfig.follow(owned, now)


async def test_what_is_taken_out_is_not_written_again_by_a_daemon_that_follows(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await ghapp.asked("setup-git")
    owned = config.config_dir() / "gitconfig"
    undo, followed = gitconfig.undo, []

    def undo_and_follow(*arguments: Any, **options: Any) -> list[Change]:
        followed.append(gitconfig.follow(owned, {"acme-bot": [("github.com", "initech")]}))
        return undo(*arguments, **options)

    monkeypatch.setattr(gitconfig, "undo", undo_and_follow)
    await ghapp.asked("setup-git", "--undo")

    assert followed == [False]
    assert not owned.exists()


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for directory in (tmp_path, tmp_path / "missing"):
        with gitconfig.turn(directory) as is_ours:
            assert is_ours


# What a person deleted or broke


async def test_an_identity_stays_where_our_file_was_deleted(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
) -> None:
    owned = config.config_dir() / "gitconfig"
    await ghapp.asked("setup-git", "--identity")
    once = owned.read_text()
    owned.unlink()

    await ghapp.asked("setup-git")

    assert owned.read_text() == once


async def test_nobody_is_said_to_be_answered_where_git_cannot_read_its_configuration(
    served: App,  # noqa: ARG001  # it serves
    ghapp: Ghapp,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = home.path / "it's broken"
    broken.write_text("[user\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(broken))

    done = await ghapp.asked("setup-git")

    assert done.code == 1
    assert "is answered" not in done.err
    assert "ghapp: error: fatal: bad config line 1 in file" in done.err
    assert f"ghapp: hint: ${{EDITOR:-vi}} {shlex.quote(str(broken))}" in done.err
