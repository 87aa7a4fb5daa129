"""How the daemon reaches GitHub: proxy, trust, time-outs; the configuration wins over the environment."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from urllib import request as urllib_request
from urllib.parse import urlsplit

import httpx
import truststore

from ghapp import config
from ghapp.errors import ProxyFailed, TlsFailed


CONNECT_TIMEOUT = 3.0
_PROXY = re.compile(r"https?://(?:[!-~]*@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?/?")  # no SOCKS
READ_TIMEOUT = 12.0  # GitHub itself gives up at 10 s


@dataclass(frozen=True, slots=True)
class Network:
    """Where proxy and trust come from."""

    proxy: str = field(default="", repr=False)
    """A URL; it may hold a password."""
    proxy_origin: str = ""
    """The variable or the configuration key that named the proxy."""
    no_proxy: str = ""
    ca_file: str = ""
    ca_directory: str = ""
    ca_origin: str = ""

    @property
    def proxy_name(self) -> str:
        """Host and port of the proxy, without user and password."""
        return urlsplit(self.proxy).netloc.rpartition("@")[2]

    def proxy_for(self, host: str) -> str:
        """Return the proxy's URL for `host`, or "" if it is reached directly."""
        if not self.proxy or _bypasses(host, self.no_proxy):
            return ""
        return self.proxy


def _bypasses(host: str, no_proxy: str) -> bool:
    bypasses: bool = urllib_request.proxy_bypass_environment(host, {"no": no_proxy})  # type: ignore[attr-defined]  # not in typeshed
    return bypasses


_CONFIGURED = "network."  # what the names of configuration keys begin with, and those of variables do not


def is_inherited(origin: str) -> bool:
    """Tell whether a setting came from the environment the daemon was started in, and not from the configuration."""
    return not origin.startswith(_CONFIGURED)


def mend(origin: str) -> str:
    """Return the hint for a setting that does not work: the daemon keeps the environment it was started in."""
    file = config.config_file()
    if not is_inherited(origin):
        return f"mend {origin.removeprefix(_CONFIGURED)} below [network] in {file}, then: ghapp daemon restart"
    key = "proxy" if "proxy" in origin.lower() else "ca_file"
    return f"mend {origin} in this shell, or set {key} below [network] in {file}; then: ghapp daemon restart"


def network_from(environment: Mapping[str, str], configured: Mapping[str, str]) -> Network:
    """Return the settings of the ``[network]`` section, and of the environment where that is silent."""

    def first(key: str, *names: str) -> tuple[str, str]:
        if configured.get(key):
            return configured[key], f"{_CONFIGURED}{key}"
        return next(((environment[name], name) for name in names if environment.get(name)), ("", ""))

    proxy, proxy_origin = first("proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    no_proxy, _ = first("no_proxy", "NO_PROXY", "no_proxy")
    ca_file, ca_origin = first("ca_file", "SSL_CERT_FILE")
    ca_directory, directory_origin = first("ca_directory", "SSL_CERT_DIR")
    if "://" not in proxy and proxy:
        proxy = f"http://{proxy}"
    return Network(proxy, proxy_origin, no_proxy, ca_file, ca_directory, ca_origin or directory_origin)


def trust(network: Network) -> ssl.SSLContext:
    """Return a context that verifies: against the named CA file, else the operating system's trust store."""
    if not network.ca_file and not network.ca_directory:
        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for path in filter(None, (network.ca_file, network.ca_directory)):
        if not Path(path).exists():
            why, inherited = f"{path} does not exist, which {network.ca_origin} names", is_inherited(network.ca_origin)
            raise TlsFailed(why, hint=mend(network.ca_origin), inherited=inherited)
    try:
        # Not create_default_context: that writes session keys where SSLKEYLOGFILE says.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=network.ca_file or None, capath=network.ca_directory or None)
    except OSError as error:  # ssl.SSLError is one
        why = "holds no certificates" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
        raise TlsFailed(f"{network.ca_file} {why}", hint=mend(network.ca_origin)) from None
    return context


def http_client(network: Network, host: str) -> httpx.AsyncClient:
    """Return a client for `host` that takes nothing from the environment and follows no redirect.

    No netrc, which would replace our JWT; no compression, so that a body's size is what is read.
    """
    proxy = network.proxy_for(host)
    if proxy and not _PROXY.fullmatch(proxy):
        why, inherited = (
            f"the proxy in {network.proxy_origin} is not http://HOST:PORT",
            is_inherited(network.proxy_origin),
        )
        raise ProxyFailed(why, hint=mend(network.proxy_origin), inherited=inherited)
    return httpx.AsyncClient(
        verify=trust(network),
        proxy=proxy or None,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
        headers={"User-Agent": f"ghapp/{version('ghapp')}", "Accept-Encoding": "identity"},
        limits=httpx.Limits(max_connections=20, keepalive_expiry=60),
    )
