"""Private keys: what is taken for one, and what is said of anything else."""

import base64
import hashlib
import re
from math import gcd
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from ghapp.errors import KeyUnavailable
from ghapp.private_key import decode_key, encode_key, fingerprint, load_der, load_key


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(
    key: object,
    form: PrivateFormat = PrivateFormat.TraditionalOpenSSL,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())  # type: ignore[attr-defined]
    return data


def as_downloaded(key: rsa.RSAPrivateKey) -> bytes:
    return pem(key)


def as_pkcs8(key: rsa.RSAPrivateKey) -> bytes:
    return pem(key, PrivateFormat.PKCS8)


def in_one_line(key: rsa.RSAPrivateKey) -> bytes:
    return pem(key).replace(b"\n", b"\\n")


def in_one_windows_line(key: rsa.RSAPrivateKey) -> bytes:
    return pem(key).replace(b"\n", b"\\r\\n") + b"\n"


def with_windows_lines(key: rsa.RSAPrivateKey) -> bytes:
    return pem(key).replace(b"\n", b"\r\n")


def with_spaces_for_lines(key: rsa.RSAPrivateKey) -> bytes:
    return pem(key).replace(b"\n", b" ")


def with_something_in_front(key: rsa.RSAPrivateKey) -> bytes:
    return b"\xef\xbb\xbfBag Attributes\n  none\n" + pem(key)


@pytest.mark.parametrize(
    "form",
    [
        as_downloaded,
        as_pkcs8,
        in_one_line,
        in_one_windows_line,
        with_windows_lines,
        with_spaces_for_lines,
        with_something_in_front,
    ],
)
def test_every_form_of_the_key_is_read(key: rsa.RSAPrivateKey, form: object) -> None:
    assert callable(form)
    for known in (False, True):
        assert load_key(form(key), source="x", known=known).private_numbers() == key.private_numbers()


def test_the_fingerprint_is_the_one_that_github_shows(key: rsa.RSAPrivateKey) -> None:
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    assert fingerprint(key) == "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()
    assert len(fingerprint(key)) == len("SHA256:") + 44


def strangers(key: rsa.RSAPrivateKey) -> dict[str, bytes]:
    public = key.public_key()
    password = BestAvailableEncryption(b"correct horse")
    whole = pem(key)
    return {
        "nothing": b"",
        "nothing ": b" \n\n",
        "no PEM block": b"ghp_not_a_key",
        "no PEM block ": base64.b64encode(whole),
        "an OpenSSH key": pem(key, PrivateFormat.OpenSSH),
        "an encrypted key": pem(key, PrivateFormat.PKCS8, password),
        "an encrypted key ": pem(key, PrivateFormat.TraditionalOpenSSL, password),
        "an elliptic curve key": pem(ec.generate_private_key(ec.SECP256R1())),
        "a DSA key": pem(dsa.generate_private_key(1024)),  # noqa: S505  # it is refused
        "a public key": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "a public key ": public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        "a certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "a damaged key": whole[:200] + whole[260:],
        "a damaged key ": whole[:-40],
        "a key of another kind (Ed25519)": pem(ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8),
        "an RSA key of 1024 bits, of which 2048 are needed": pem(
            rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  # it is refused
        ),
        "an RSA key whose public exponent is not 65537": pem(
            rsa.generate_private_key(public_exponent=3, key_size=2048)
        ),
    }


def test_anything_else_is_named_and_not_repeated(key: rsa.RSAPrivateKey) -> None:
    for what, data in strangers(key).items():
        with pytest.raises(KeyUnavailable) as caught:
            load_key(data, source="/some/key.pem")
        with pytest.raises(KeyUnavailable, match=re.escape(caught.value.message)):
            load_key(data, source="/some/key.pem", known=True)

        error = caught.value
        assert error.message == f"/some/key.pem holds {what.strip()}, not an app's private key"
        assert "Private keys" in error.hint
        assert (error.__cause__, error.__context__) == (None, None)  # the library's own could quote the key
        assert not any(line in repr(error).encode() for line in data.split() if len(line) > 20)


def test_the_source_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyUnavailable, match=str(tmp_path)):
        load_key(b"", source=str(tmp_path))


@pytest.mark.parametrize("known", [False, True])
def test_a_key_with_one_wrong_bit_is_refused_wherever_that_is(key: rsa.RSAPrivateKey, *, known: bool) -> None:
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())

    for place in range(0, len(der), 13):
        damaged = bytearray(der)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(KeyUnavailable):
            load_key(as_pem(damaged), source="x", known=known)


@pytest.mark.parametrize("known", [False, True])
def test_a_key_whose_numbers_belong_together_but_are_no_primes_is_refused(
    key: rsa.RSAPrivateKey, *, known: bool
) -> None:
    q = key.private_numbers().q
    p = next(p for p in range(q + 2, 2 * q, 2) if p % 3 == 0 and gcd(p - 1, 65537) == 1)
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    whole = pem(numbers.private_key(unsafe_skip_rsa_key_validation=True))

    with pytest.raises(KeyUnavailable, match="x holds a damaged key"):
        load_key(whole, source="x", known=known)
    with pytest.raises(KeyUnavailable, match="damaged"):
        decode_key(encode_key(numbers.private_key(unsafe_skip_rsa_key_validation=True)))


def test_numbers_that_are_too_large_are_refused_before_anything_is_signed_with_them() -> None:
    p, q = ((1 << 12_000) + offset for offset in (1, 3))
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)

    with pytest.raises(KeyUnavailable, match="x holds an RSA key of 24001 bits, and 16384 are the most"):
        load_key(pem(key), source="x", known=True)
    with pytest.raises(KeyUnavailable, match="damaged"):
        decode_key(encode_key(key))


def as_pem(der: bytearray) -> bytes:
    lines = base64.encodebytes(der)
    return b"-----BEGIN RSA PRIVATE KEY-----\n" + lines + b"-----END RSA PRIVATE KEY-----\n"


# -- the one line that keyrings keep ------------------------------------------------------------------------------


def decoded(line: bytes) -> rsa.RSAPrivateKey:
    return load_der(memoryview(decode_key(line)), source="x")


def is_same(one: rsa.RSAPrivateKey, other: rsa.RSAPrivateKey) -> bool:
    """Compare what the keys do: the private exponent has several right values."""
    signatures = [key.sign(b"message", PKCS1v15(), SHA256()) for key in (one, other)]
    return signatures[0] == signatures[1] and encode_key(one) == encode_key(other)


@pytest.mark.parametrize("bits", [2048, 3072])
def test_a_key_survives_as_one_short_line(bits: int) -> None:
    key = rsa.generate_private_key(65537, bits)

    line = encode_key(key)

    assert line.isascii()
    assert b"\n" not in line
    assert len(line) < 1280  # what Windows keeps
    assert is_same(decoded(line), key)


@pytest.mark.parametrize(
    "damage", [b"", b"rsa1:", b"rsa1:AAAA", b"rsa1:A", b"rsa2:AAAA", b"-----BEGIN RSA PRIVATE KEY-----"]
)
def test_a_damaged_line_is_refused_without_being_shown(damage: bytes) -> None:
    with pytest.raises(KeyUnavailable, match="damaged") as caught:
        decode_key(damage)

    assert caught.value.__context__ is None


def test_half_a_line_is_refused(key: rsa.RSAPrivateKey) -> None:
    line = encode_key(key)

    with pytest.raises(KeyUnavailable):
        decoded(line[: len(line) // 2])


def test_der_that_is_no_key_for_an_app_is_named_and_not_repeated(key: rsa.RSAPrivateKey) -> None:
    whole = decode_key(encode_key(key))
    small = decode_key(encode_key(rsa.generate_private_key(public_exponent=65537, key_size=1024)))  # noqa: S505  # refused

    for der, what in ((b"", "a damaged key"), (whole[:-9], "a damaged key"), (small, "an RSA key of 1024 bits")):
        with pytest.raises(KeyUnavailable, match=f"the keyring holds {what}") as caught:
            load_der(memoryview(der), source="the keyring")
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)
