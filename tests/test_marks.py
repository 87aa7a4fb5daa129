"""The hunt after every test finds what it is for: one that cannot find anything proves nothing."""

import base64
import json
from pathlib import Path

from marks import files_with_secrets
from standin.client import as_app
from standin.server import StandIn

from ghapp.private_key import encode_key


def test_a_token_a_jwt_and_a_key_are_found_in_any_file_and_a_file_that_is_a_key_may_be(tmp_path: Path) -> None:
    with StandIn.start(tmp_path / "github") as github:
        app = github.add_app("acme-bot", {"contents": "write"})
        installation = github.install(app, "acme", ["rocket"])
        with as_app(github, app) as client:
            answer = client.post(f"/app/installations/{installation.id}/access_tokens").json()
        parts = ({"alg": "RS256", "typ": "JWT"}, {"iat": 1, "exp": 2, "iss": app.client_id})
        texts = (json.dumps(part, separators=(",", ":")).encode() for part in parts)
        jwt = b".".join([*(base64.urlsafe_b64encode(text).rstrip(b"=") for text in texts), b"s" * 342])
        numbers = app.private_keys[0].private_numbers()
        planted = {
            "token": answer["token"].encode(),
            "end of a token": answer["token"][-300:].encode(),
            "jwt": b"Authorization: Bearer " + jwt,
            "as we keep it": encode_key(app.private_keys[0]),
            "in a log": b"2026-01-01 key " + app.private_key_pem.replace(b"\n", b"\\n"),
            "in base64": base64.b64encode(app.private_key_pem),
            "a number": str(numbers.d).encode(),
            "in hex": f"{numbers.p:x}".encode(),
        }
        for name, secret in planted.items():
            (tmp_path / "deep" / name).mkdir(parents=True)
            (tmp_path / "deep" / name / "file").write_bytes(b"\0begin " + secret + b" end\n")
        (tmp_path / "app.pem").write_bytes(app.private_key_pem)
        (tmp_path / "harmless").write_bytes(b"ghs_4242_eyJhbGciOiJFUzI1NiJ9 acme-bot " + app.client_id.encode())

        found = set(files_with_secrets(github, tmp_path, apart_from=tmp_path / "github"))

    assert found == {str(tmp_path / "deep" / name / "file") for name in planted}
