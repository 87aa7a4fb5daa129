"""Where proxy and trust come from."""

import ssl
from importlib.metadata import version
from pathlib import Path

import pytest
import trustme
import truststore

from ghapp import config
from ghapp.errors import ProxyFailed, TlsFailed
from ghapp.network import Network, http_client, mend, network_from, trust


HOST = "api.github.com"


@pytest.mark.parametrize(
    ("environment", "configured", "expected"),
    [
        ({}, {}, Network()),
        ({"HTTPS_PROXY": "http://p:1"}, {}, Network("http://p:1", "HTTPS_PROXY")),
        ({"https_proxy": "p:1"}, {}, Network("http://p:1", "https_proxy")),
        ({"HTTPS_PROXY": "", "https_proxy": "http://p:2"}, {}, Network("http://p:2", "https_proxy")),
        ({"HTTPS_PROXY": "http://p:1"}, {"proxy": "http://q:2"}, Network("http://q:2", "network.proxy")),
        ({"HTTPS_PROXY": "http://p:1"}, {"proxy": ""}, Network("http://p:1", "HTTPS_PROXY")),
        ({"ALL_PROXY": "http://p:1", "http_proxy": "http://no:1"}, {}, Network("http://p:1", "ALL_PROXY")),
        ({"NO_PROXY": "a", "no_proxy": "b"}, {}, Network(no_proxy="a")),
        ({"NO_PROXY": "a"}, {"no_proxy": "c"}, Network(no_proxy="c")),
        ({"SSL_CERT_FILE": "/ca"}, {}, Network(ca_file="/ca", ca_origin="SSL_CERT_FILE")),
        ({"SSL_CERT_DIR": "/cas"}, {}, Network(ca_directory="/cas", ca_origin="SSL_CERT_DIR")),
        (
            {"SSL_CERT_FILE": "/ca", "SSL_CERT_DIR": "/cas"},
            {"ca_file": "/own"},
            Network(ca_file="/own", ca_directory="/cas", ca_origin="network.ca_file"),
        ),
        ({"PYTHONHTTPSVERIFY": "0", "REQUESTS_CA_BUNDLE": "/x"}, {}, Network()),
    ],
)
def test_the_configuration_wins_over_the_environment(
    environment: dict[str, str], configured: dict[str, str], expected: Network
) -> None:
    assert network_from(environment, configured) == expected


@pytest.mark.parametrize(
    ("no_proxy", "bypassed"),
    [
        ("", False),
        ("*", True),
        ("api.github.com", True),
        ("github.com", True),
        (".github.com", True),
        ("other.example, github.com", True),
        ("hub.com", False),
        ("api.github.com.evil", False),
    ],
)
def test_a_host_that_needs_no_proxy_is_reached_directly(no_proxy: str, *, bypassed: bool) -> None:
    assert Network("http://p:1", "x", no_proxy).proxy_for(HOST) == ("" if bypassed else "http://p:1")


@pytest.mark.parametrize(
    ("proxy", "name"),
    [
        ("http://user:secret@proxy.example:3128", "proxy.example:3128"),
        ("http://us@er:sec@ret@proxy.example", "proxy.example"),
        ("http://[::1]:8080/", "[::1]:8080"),
        ("http://proxy:99999999", "proxy:99999999"),
        ("", ""),
    ],
)
def test_the_proxy_is_named_without_its_password(proxy: str, name: str) -> None:
    network = Network(proxy)

    assert network.proxy_name == name
    assert "sec" not in repr(network)


def test_a_hint_names_the_file_and_the_key() -> None:
    file, then = config.config_file(), "then: ghapp daemon restart"

    assert mend("network.proxy") == f"mend proxy below [network] in {file}, {then}"
    assert mend("all_proxy") == f"mend all_proxy in this shell, or set proxy below [network] in {file}; {then}"
    assert mend("SSL_CERT_DIR") == f"mend SSL_CERT_DIR in this shell, or set ca_file below [network] in {file}; {then}"


@pytest.mark.parametrize(
    "proxy",
    ["socks5://p:1080", "ftp://p:1", "http://", "http://p:port", "http://p:1/path?x", "http://p\n:1", "http://[::1"],
)
async def test_a_proxy_that_cannot_be_used_is_named_by_its_origin(proxy: str) -> None:
    with pytest.raises(ProxyFailed) as caught:
        http_client(Network(proxy, "HTTPS_PROXY"), HOST)

    assert caught.value.message == "the proxy in HTTPS_PROXY is not http://HOST:PORT"
    assert caught.value.hint == mend("HTTPS_PROXY")
    async with http_client(Network(proxy, "HTTPS_PROXY", no_proxy="*"), HOST) as client:
        assert not client.trust_env


@pytest.mark.parametrize("proxy", ["", "http://p:1", "https://u:p@p.example:8080/", "http://[::1]:3128"])
async def test_a_client_takes_nothing_from_the_environment(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://elsewhere:1")

    async with http_client(Network(proxy, "x"), HOST) as client:
        assert (client.trust_env, client.follow_redirects) == (False, False)
        assert client.headers["user-agent"] == f"ghapp/{version('ghapp')}"
        assert client.headers["accept-encoding"] == "identity"
        assert (client.timeout.connect, client.timeout.read) == (3.0, 12.0)


def test_without_a_ca_the_operating_system_is_trusted() -> None:
    context = trust(Network())

    assert isinstance(context, truststore.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_ca_file_is_trusted_alone(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    context = trust(Network(ca_file=str(tmp_path / "ca.pem"), ca_origin="SSL_CERT_FILE"))

    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_ca_directory_is_trusted(tmp_path: Path) -> None:
    assert trust(Network(ca_directory=str(tmp_path))).verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("key", ["ca_file", "ca_directory"])
def test_a_ca_that_is_gone_is_named_by_its_origin(tmp_path: Path, key: str) -> None:
    network = network_from({}, {key: str(tmp_path / "gone")})

    with pytest.raises(TlsFailed) as caught:
        trust(network)

    assert caught.value.message == f"{tmp_path}/gone does not exist, which network.{key} names"
    assert caught.value.hint == f"mend {key} below [network] in {config.config_file()}, then: ghapp daemon restart"


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_ca_file_without_certificates_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)

    with pytest.raises(TlsFailed) as caught:
        trust(Network(ca_file=str(path), ca_origin="SSL_CERT_FILE"))

    assert (caught.value.message, caught.value.hint) == (
        f"{path} holds no certificates",
        mend("SSL_CERT_FILE"),
    )


def test_a_ca_file_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlsFailed, match=r"cannot be read: Is a directory|holds no certificates"):
        trust(Network(ca_file=str(tmp_path), ca_origin="SSL_CERT_FILE"))
