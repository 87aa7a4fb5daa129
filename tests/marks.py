"""After every test that had a stand-in: no token that it gave out, no JWT and no key lies in any file of the test."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

from standin.server import StandIn

from ghapp.private_key import encode_key


JWT = re.compile(rb"eyJhbGciOiJSUzI1NiIs[\w-]+\.eyJ[\w-]+\.[\w-]{40}")
"""As we make them: GitHub's tokens have a JWT in them too, of another kind."""
TRACE = re.compile(r"trace\.[0-9]+")
"""What strace wrote for a test: all that a process said, to git as well."""
KEY_FILE = re.compile(rb"\s*-----BEGIN (?:RSA )?PRIVATE KEY-----[^-]*-----END (?:RSA )?PRIVATE KEY-----\s*")


def secret_texts(github: StandIn) -> set[bytes]:
    """Return a part of every token and of every key, in each form that a key has in text."""
    found = {mint.token[len(mint.token) // 2 :].encode() for mint in github.mints}
    for app in github.apps.values():
        for key in app.private_keys:
            found.add(encode_key(key)[40:80])
            numbers = key.private_numbers()
            for number in (numbers.p, numbers.q, numbers.d):
                found |= {str(number).encode()[:40], f"{number:x}".encode()[:40]}
        for pem in (app.private_key_pem,) if app.private_keys else ():
            found |= {line for line in pem.split(b"\n")[2:-3] if len(line) >= 64}  # a whole line
            found.add(base64.b64encode(pem)[200:260])
    return found


def files_with_secrets(github: StandIn, *trees: Path, apart_from: Path) -> Iterator[str]:
    """Yield the files below `trees` that hold what they must not; a file that is a key, and nothing else, may."""
    hunted = secret_texts(github)
    for tree in trees:
        for path in tree.rglob("*"):
            if apart_from in path.parents or TRACE.fullmatch(path.name) or path.is_symlink() or not path.is_file():
                continue
            try:
                content = path.read_bytes()
            except OSError:
                continue
            if KEY_FILE.fullmatch(content):
                continue
            if JWT.search(content) or any(text in content for text in hunted):
                yield str(path)
