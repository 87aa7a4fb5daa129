"""RSA private keys as GitHub makes them: read, judge, name, and put into the one line that keyrings keep."""

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPrivateNumbers,
    RSAPublicNumbers,
    rsa_crt_dmp1,
    rsa_crt_dmq1,
    rsa_crt_iqmp,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from ghapp.errors import KeyUnavailable


MIN_BITS = 2048
MAX_BITS = 16384  # OpenSSL verifies nothing larger, and to sign with what is may take minutes
PUBLIC_EXPONENT = 65537
MAX_PEM = 64 * 1024  # an RSA-16384 key is 13 KB

_PREFIX = b"rsa1:"
_HINT = (
    "generate one below Private keys on the app's page: https://github.com/settings/apps, "
    "an organisation's: https://github.com/organizations/ORG/settings/apps"
)


def load_key(pem: bytes, *, source: str, known: bool = False) -> RSAPrivateKey:
    r"""Parse a PKCS#1 or PKCS#8 PEM, also one squeezed into a line with ``\n`` written out.

    `source` names it in messages. `known` spares the 40 ms in which OpenSSL proves that p and q are primes, for a key
    that is in use: that its numbers belong together and that it signs well is looked at all the same. Raises
    `KeyUnavailable`, which says what it is instead of a key for an app; its text never contains a part of `pem`.
    """
    if b"\\n" in pem and b"\n" not in pem.strip():
        pem = pem.replace(b"\\r", b"").replace(b"\\n", b"\n")
    wrong = _what_else(pem)
    if wrong:
        raise KeyUnavailable(f"{source} holds {wrong}, not an app's private key", hint=_HINT)
    try:
        key = load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=known)
    except TypeError:
        wrong = "an encrypted key"
    except (ValueError, UnsupportedAlgorithm):
        wrong = "a damaged key"
    else:
        wrong = _what_is_wrong(key)
        if isinstance(key, RSAPrivateKey) and not wrong:
            if not known or (_belong_together(key.private_numbers()) and _signs_well(key)):
                return key
            wrong = "a damaged key"
    # Outside of the except block: the library's exception could carry bytes of the key.
    raise KeyUnavailable(f"{source} holds {wrong}, not an app's private key", hint=_HINT)


def _what_else(pem: bytes) -> str:
    kinds = {
        b"": "nothing",
        b"-----BEGIN OPENSSH PRIVATE KEY-----": "an OpenSSH key",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----": "an encrypted key",
        b"-----BEGIN EC PRIVATE KEY-----": "an elliptic curve key",
        b"-----BEGIN DSA PRIVATE KEY-----": "a DSA key",
        b"-----BEGIN PUBLIC KEY-----": "a public key",
        b"-----BEGIN RSA PUBLIC KEY-----": "a public key",
        b"-----BEGIN CERTIFICATE-----": "a certificate",
    }
    lines = pem.strip().splitlines()
    first = lines[0].strip() if lines else b""
    if first in kinds:
        return kinds[first]
    return "" if b"-----BEGIN " in pem else "no PEM block"


def _what_is_wrong(key: object) -> str:
    if not isinstance(key, RSAPrivateKey):
        return f"a key of another kind ({type(key).__name__.removesuffix('PrivateKey')})"
    if key.key_size < MIN_BITS:
        return f"an RSA key of {key.key_size} bits, of which {MIN_BITS} are needed"
    if key.key_size > MAX_BITS:
        return f"an RSA key of {key.key_size} bits, and {MAX_BITS} are the most"
    if key.public_key().public_numbers().e != PUBLIC_EXPONENT:
        return f"an RSA key whose public exponent is not {PUBLIC_EXPONENT}"
    return ""


def _belong_together(numbers: RSAPrivateNumbers) -> bool:
    """Tell whether these are a key's, if p and q are primes; OpenSSL may hang or crash over some that are not."""
    p, q, d = numbers.p, numbers.q, numbers.d
    return (
        min(p, q) > 1
        and p & q & 1 == 1
        and p * q == numbers.public_numbers.n
        and d * numbers.public_numbers.e % (p - 1) == 1
        and d * numbers.public_numbers.e % (q - 1) == 1
        and (numbers.dmp1, numbers.dmq1) == (d % (p - 1), d % (q - 1))
        and 0 < numbers.iqmp < p
        and numbers.iqmp * q % p == 1
    )


def _signs_well(key: RSAPrivateKey) -> bool:
    """Tell whether `key` fits its public half, which it does not if p or q is no prime."""
    message = b"ghapp"
    try:
        key.public_key().verify(key.sign(message, PKCS1v15(), SHA256()), message, PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(key: RSAPrivateKey) -> str:
    """Return ``SHA256:…`` as the app's page on GitHub shows it: of the DER SubjectPublicKeyInfo, with padding."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()


def load_der(der: memoryview, *, source: str) -> RSAPrivateKey:
    """Parse what `decode_key` returned, whose numbers belong together; keeps nothing of `der`.

    Raises `KeyUnavailable`, as `load_key`.
    """
    try:
        key = load_der_private_key(der, password=None, unsafe_skip_rsa_key_validation=True)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        wrong = "a damaged key"
    else:
        wrong = _what_is_wrong(key)
        if isinstance(key, RSAPrivateKey) and not wrong:
            if _signs_well(key):
                return key
            wrong = "a damaged key"
    raise KeyUnavailable(f"{source} holds {wrong}, not an app's private key", hint=_HINT)


def encode_key(key: RSAPrivateKey) -> bytes:
    """Return ``rsa1:`` and base64url of p and q, both padded to the longer: all that a key with e = 65537 is."""
    numbers = key.private_numbers()
    length = (max(numbers.p.bit_length(), numbers.q.bit_length()) + 7) // 8
    halves = numbers.p.to_bytes(length, "big") + numbers.q.to_bytes(length, "big")
    return _PREFIX + base64.urlsafe_b64encode(halves)


def decode_key(value: bytes) -> bytes:
    """Rebuild the key and return its DER. Raises `KeyUnavailable`, whose text holds nothing of `value`.

    For a process that ends soon: the numbers it passes through stay in its memory.
    """
    try:
        halves = base64.b64decode(value.removeprefix(_PREFIX), altchars=b"-_", validate=True)
        middle, odd = divmod(len(halves), 2)
        if value.startswith(_PREFIX) and not odd:
            return _rebuild(int.from_bytes(halves[:middle], "big"), int.from_bytes(halves[middle:], "big"))
    except (ValueError, binascii.Error, ZeroDivisionError):
        pass
    # Outside of the except block, so that no exception with a part of the value in it hangs on ours.
    raise KeyUnavailable("the key in the keyring is damaged", hint="ghapp app add NAME --app-id N --key FILE")


def _rebuild(p: int, q: int) -> bytes:
    if min(p, q) <= 1 or p & q & 1 == 0 or p.bit_length() + q.bit_length() > MAX_BITS + 1:
        raise ValueError
    d = pow(PUBLIC_EXPONENT, -1, (p - 1) * (q - 1))
    numbers = RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=rsa_crt_dmp1(d, p),
        dmq1=rsa_crt_dmq1(d, q),
        iqmp=rsa_crt_iqmp(p, q),
        public_numbers=RSAPublicNumbers(PUBLIC_EXPONENT, p * q),
    )
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)  # as in `load_key`, of one that was proven to get in
    if not _signs_well(key):
        raise ValueError
    return key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
