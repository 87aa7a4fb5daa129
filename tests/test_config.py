"""config.toml: read strictly, written whole, its comments kept."""

import errno
import os
import tomllib
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from ghapp import config
from ghapp.config import Config, api_url, app_table, edit, load, parse_duration, put_app, remove_app, write_atomically
from ghapp.errors import ConfigError
from ghapp.routing import App


NETWORK = {"proxy": "", "no_proxy": "", "ca_file": "", "ca_directory": ""}
MINIMAL = '[[app]]\nname = "bot"\nclient_id = "Iv1"\nkeys = ["file:/k"]\n'
BOT = App("bot", "github.com", "https://api.github.com", "Iv1", ("file:/k",), client_id="Iv1")
FULL = """# mine
[daemon]
idle_timeout = "1h30m"  # until lunch
key_ttl = 0
probe = false
on_error = "next"

[network]
proxy = "http://proxy:3128"

[keyring]
backend = "keyring.backends.libsecret.Keyring"

[[app]]
name = "bot"
host = "GHE.example:8443"
app_id = 42
keys = ["file:/a", "file:/b"]
owners = ["Acme", "other"]
scope = "installation"
permissions = { issues = "read", contents = "write" }
# the end
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "config.toml"


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Config(network=NETWORK)),
        ("app = []", Config(network=NETWORK)),
        (MINIMAL, Config(apps=(BOT,), network=NETWORK)),
        (
            FULL,
            Config(
                idle_timeout=5400.0,
                key_ttl=0.0,
                quit_on_error=False,
                probe=False,
                keyring_backend="keyring.backends.libsecret.Keyring",
                apps=(
                    App(
                        name="bot",
                        host="ghe.example:8443",
                        api="https://ghe.example:8443/api/v3",
                        issuer="42",
                        keys=("file:/a", "file:/b"),
                        app_id=42,
                        owners=("Acme", "other"),
                        whole_installation=True,
                        permissions=(("contents", "write"), ("issues", "read")),
                    ),
                ),
                network=NETWORK | {"proxy": "http://proxy:3128"},
            ),
        ),
        (
            MINIMAL + 'app_id = 7\napi_url = "https://ghe.example/api/v3/"\n',
            Config(
                apps=(
                    App(
                        "bot",
                        "github.com",
                        "https://ghe.example/api/v3",
                        "Iv1",
                        ("file:/k",),
                        client_id="Iv1",
                        app_id=7,
                    ),
                ),
                network=NETWORK,
            ),
        ),
    ],
)
def test_a_configuration_is_read(path: Path, text: str, expected: Config) -> None:
    assert load(write(path, text)) == expected


def test_a_missing_file_is_an_empty_configuration(path: Path) -> None:
    assert load(path) == Config()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[daemon", "Expected"),
        (b"\xff", "utf-8"),
        ("[deamon]", "there is no section 'deamon'; known are app, daemon, keyring and network"),
        ("daemon = 1", "daemon must be a table"),
        ("[daemon]\ntimeout = 1", "daemon has no key 'timeout'; known are idle_timeout, key_ttl, on_error, probe"),
        ('[daemon]\nidle_timeout = "soon"', 'daemon.idle_timeout must be a duration such as "15m", or 0'),
        ("[daemon]\nidle_timeout = 5", "daemon.idle_timeout must be a duration"),
        ("[daemon]\nidle_timeout = false", "daemon.idle_timeout must be a duration"),
        ('[daemon]\nkey_ttl = "-5m"', "daemon.key_ttl must be a duration"),
        ("[daemon]\nprobe = 1", "daemon.probe must be true or false"),
        ('[daemon]\non_error = "stop"', "daemon.on_error must be one of next, quit"),
        ("[network]\nproxy = 3128", "network.proxy must be a line of text"),
        ('[network]\nproxy = "a\\nb"', "network.proxy must be a line of text"),
        ("[app]\nname = 'x'", "app must be a list of tables: [[app]]"),
        ("app = [1]", "app[0] must be a table"),
        ("[keyring]\nbackend = 1", "keyring.backend must be a line of text"),
        (MINIMAL.replace('"bot"', '""'), "app[0].name is missing"),
        (MINIMAL.replace('name = "bot"', ""), "app[0].name is missing"),
        (MINIMAL + MINIMAL, "there are two apps of the name bot"),
        (MINIMAL + 'secret = "x"', "app[0] has no key 'secret'"),
        (MINIMAL + 'host = "https://github.com"', "app[0].host is not a host name"),
        (MINIMAL + 'host = "github.com/evil"', "app[0].host is not a host name"),
        (MINIMAL + 'host = "user@github.com"', "app[0].host is not a host name"),
        (MINIMAL.replace('client_id = "Iv1"', ""), "app[0] has neither client_id nor app_id"),
        (MINIMAL + "app_id = 0", "app[0].app_id must be a positive number"),
        (MINIMAL + "app_id = true", "app[0].app_id must be a positive number"),
        (MINIMAL + 'app_id = "7"', "app[0].app_id must be a positive number"),
        *(
            (MINIMAL + f'api_url = "{url}"', "app[0].api_url must be https://HOST/PATH")
            for url in (
                "http://api.github.com",
                "https://",
                "https://u:p@api.github.com",
                "https://h/?q",
                "https://h:x",
            )
        ),
        (MINIMAL.replace('keys = ["file:/k"]\n', ""), "app[0].keys is missing"),
        (MINIMAL.replace("file:/k", "/k"), "app[0].keys: /k is of no known kind; known are keyring: and file:"),
        (MINIMAL.replace('["file:/k"]', '"file:/k"'), "app[0].keys must be a list of texts"),
        (MINIMAL.replace('["file:/k"]', '[""]'), "app[0].keys must be a list of texts"),
        (MINIMAL + "owners = [1]", "app[0].owners must be a list of texts"),
        (MINIMAL + 'scope = "all"', "app[0].scope must be one of installation, repository"),
        *(
            (MINIMAL + f"permissions = {value}", "app[0].permissions must name at least one permission and its level")
            for value in ("{}", '{ contents = "wirte" }', "{ contents = 1 }", "{ contents = [] }", '"contents"')
        ),
        ("x = " + "[" * 3000, ""),
        ("#" * (config.MAX_CONFIG + 1), "larger than"),
    ],
)
def test_a_mistake_is_named_with_its_place(path: Path, text: str | bytes, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(path, text))

    assert caught.value.message.startswith(f"{path}: ")
    assert complaint in caught.value.message
    assert caught.value.hint == f"edit {path}"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    write(path, MINIMAL, mode)

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert (caught.value.message, caught.value.hint) == (f"{path} can be written by others", f"chmod go-w {path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    os.chown(write(path, MINIMAL), 4711, -1)

    with pytest.raises(ConfigError, match="can be written by others"):
        load(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "config.toml", "Not a directory")):
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.message == f"cannot read {path}: {reason}"


def test_a_proxy_with_its_password_is_not_shown(path: Path) -> None:
    read = load(write(path, '[network]\nproxy = "http://u:secret@p:1"'))

    assert "secret" not in repr(read)


# -- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("github.com", "https://api.github.com"),
        ("acme.ghe.com", "https://api.acme.ghe.com"),
        ("ghe.example", "https://ghe.example/api/v3"),
        ("notghe.com", "https://notghe.com/api/v3"),
    ],
)
def test_the_api_follows_from_the_host(host: str, url: str) -> None:
    assert api_url(host) == url


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0", 0), ("90s", 90), ("15m", 900), ("8h", 28800), ("2d", 172800), ("1h30m", 5400), ("1m1m", 120)],
)
def test_a_duration_is_read_as_ssh_add_does(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "1.5h", "-1", " 1h", "1h ", "1h\n", "1H", "1w", "1h30", "1 h", "٣m", "9999999999"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.lists(st.tuples(st.integers(0, 999_999_999), st.sampled_from("smhd")), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    text = "".join(f"{number}{unit}" for number, unit in parts)

    assert parse_duration(text) == sum(number * seconds[unit] for number, unit in parts)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds >= 0


def test_files_are_where_the_platform_wants_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))

    assert config.config_file() == config.config_dir() / "config.toml"
    assert config.state_dir().name == "ghapp"


# -- writing -------------------------------------------------------------------------------------------------------


def bot(name: str = "bot", **changes: object) -> dict[str, object]:
    fields: dict[str, object] = {"host": "github.com", "url": "https://api.github.com", "client_id": "Iv1"}
    return app_table(name=name, app_id=None, key="file:/k", **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"name": "bot", "client_id": "Iv1", "keys": ["file:/k"]}),
        ({"client_id": "", "app_id": 7}, {"name": "bot", "app_id": 7, "keys": ["file:/k"]}),
        (
            {"host": "ghe.example", "url": "https://ghe.example/api/v3"},
            {"name": "bot", "host": "ghe.example", "client_id": "Iv1", "keys": ["file:/k"]},
        ),
        (
            {"url": "https://proxy.example"},
            {"name": "bot", "api_url": "https://proxy.example", "client_id": "Iv1", "keys": ["file:/k"]},
        ),
    ],
)
def test_a_new_app_is_written_without_what_is_the_default(changes: dict[str, object], expected: object) -> None:
    fields: dict[str, object] = {
        "host": "github.com",
        "url": "https://api.github.com",
        "client_id": "Iv1",
        "app_id": None,
    }

    assert app_table(name="bot", key="file:/k", **(fields | changes)) == expected  # type: ignore[arg-type]


def test_an_app_is_added_to_a_new_file_of_our_own(path: Path) -> None:
    put_app(path, bot())

    assert load(path).apps == (BOT,)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".config.toml.lock", "config.toml"]


def test_adding_an_app_keeps_every_byte_of_the_others(path: Path) -> None:
    write(path, FULL)

    put_app(path, bot("second"))

    assert path.read_text().startswith(FULL)
    assert [app.name for app in load(path).apps] == ["bot", "second"]


def test_an_app_added_again_changes_who_it_is_and_keeps_what_it_may_do(path: Path) -> None:
    write(path, FULL + '\n[[app]] # the other\nname = "other"\napp_id = 1\nkeys = ["file:/o"]\n')

    put_app(path, bot())

    first, second = load(path).apps
    assert (first.name, first.host, first.issuer, first.app_id, first.keys) == (
        "bot",
        "github.com",
        "Iv1",
        None,
        ("file:/k",),
    )
    assert (first.owners, first.whole_installation) == (("Acme", "other"), True)
    assert second.name == "other"
    assert "# mine" in path.read_text()
    assert "# the other" in path.read_text()


def test_removing_an_app_keeps_the_others_and_the_comments(path: Path) -> None:
    write(path, FULL)
    put_app(path, bot("second"))
    put_app(path, bot("third"))

    remove_app(path, "second")

    assert [app.name for app in load(path).apps] == ["bot", "third"]
    assert path.read_text().startswith(FULL.rstrip())


def test_removing_the_last_app_leaves_the_rest_of_the_file(path: Path) -> None:
    write(path, FULL)

    remove_app(path, "bot")

    assert load(path).apps == ()
    assert path.read_text().startswith("# mine\n[daemon]")
    assert 'idle_timeout = "1h30m"  # until lunch' in path.read_text()


@pytest.mark.parametrize("text", ["", MINIMAL])
def test_an_app_that_is_not_there_cannot_be_removed(path: Path, text: str) -> None:
    write(path, text)

    with pytest.raises(ConfigError) as caught:
        remove_app(path, "other")

    assert (caught.value.message, caught.value.hint) == ("there is no app other", "ghapp app list")
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["[daemon", b"\xff", "a = 1\na = 2", "#" * (config.MAX_CONFIG + 1), "[deamon]"])
def test_a_file_that_is_invalid_already_is_not_touched(path: Path, text: str | bytes) -> None:
    before = write(path, text).read_bytes()

    with pytest.raises(ConfigError):
        put_app(path, bot())

    assert path.read_bytes() == before


def test_a_change_that_would_make_the_file_invalid_is_not_written(path: Path) -> None:
    write(path, MINIMAL)

    def change(document: tomlkit.TOMLDocument) -> None:
        document["daemon"] = {"probe": "maybe"}

    with pytest.raises(ConfigError, match=r"would become invalid: daemon\.probe must be true or false"):
        edit(path, change)

    assert path.read_text() == MINIMAL


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"cannot (read|write)"):
        put_app(tmp_path / "file" / "config.toml", bot())


def test_a_disk_that_fails_leaves_the_old_file(path: Path, tmp_path: Path) -> None:
    (path.parent).mkdir()
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere" / "gone" / "config.toml")

    with pytest.raises(ConfigError, match="cannot write"):
        put_app(path, bot())


@pytest.mark.parametrize(("number", "command"), [(errno.ENOSPC, "df"), (errno.EACCES, "ls -ld")])
def test_the_hint_fits_what_keeps_it_from_being_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, command: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(config, "write_atomically", fail)
    with pytest.raises(ConfigError, match="cannot write") as caught:
        put_app(path, bot())

    assert caught.value.hint == f"{command} {path.parent}"


@pytest.mark.parametrize("name", ["github.com", "acme.ghe.com", "ghe.example:8443", "localhost:8443", "127.0.0.1"])
def test_a_host_has_a_dot_or_is_this_machine(name: str) -> None:
    assert config.is_host(name)


@pytest.mark.parametrize("name", ["https://github.com", "github", "github.com/acme", "", "me@github.com"])
def test_what_is_not_a_host_is_told_from_one(name: str) -> None:
    assert not config.is_host(name)


def test_writing_follows_a_symlink_and_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    real = write(tmp_path / "dotfiles" / "ghapp.toml", MINIMAL)
    path.parent.mkdir()
    path.symlink_to(real)

    put_app(path, bot("second"))

    assert path.is_symlink()
    assert len(load(real).apps) == 2
    assert [entry.name for entry in real.parent.iterdir()] == ["ghapp.toml"]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    write_atomically(tmp_path / "file", b"x", mode=mode)

    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_write_that_fails_takes_its_temporary_file_with_it(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()

    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "target", b"x", mode=0o600)

    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


NAMES = st.text(st.characters(codec="ascii", min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=8)
COMMENT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)


@settings(deadline=None)  # it waits for the disk
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), COMMENT, st.data())
def test_comments_survive_every_edit(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], comment: str, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("c") / "config.toml", f"#{comment}\n[daemon] # x\nprobe = true\n#{comment}\n")
    for name in names:
        put_app(path, bot(name))
    gone = data.draw(st.sampled_from(names))

    remove_app(path, gone)

    text = path.read_text()
    assert [app.name for app in load(path).apps] == [name for name in names if name != gone]
    assert text.startswith(f"#{comment}\n[daemon] # x\nprobe = true\n#{comment}\n")
    assert tomllib.loads(text)["daemon"] == {"probe": True}
