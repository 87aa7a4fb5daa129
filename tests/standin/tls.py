"""A certificate authority of our own, and the certificate of all hosts."""

import ssl
from collections.abc import Iterable
from pathlib import Path

import trustme


HOSTS = ("github.com", "api.github.com", "codeload.github.com", "gist.github.com", "localhost", "127.0.0.1")


def server_context(ca_file: Path, hosts: Iterable[str]) -> ssl.SSLContext:
    """Write the CA's certificate to `ca_file`; its key stays in memory and goes with the process."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*HOSTS, *hosts).configure_cert(context)
    return context
