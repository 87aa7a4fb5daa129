"""Signers: where a key may lie, and what becomes of it."""

import os
import threading
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from fakes import make_app
from standin import keys

from ghapp.errors import ConfigError, KeyMissing, KeyUnavailable
from ghapp.keystore import KeyStore
from ghapp.private_key import MAX_PEM, fingerprint
from ghapp.protocols import Signer
from ghapp.signers import open_signer, open_signers
from ghapp.signers.file import FileSigner, read_key_file


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return keys.KeyPool().take()


@pytest.fixture
def path(tmp_path: Path, key: rsa.RSAPrivateKey) -> Path:
    return write(tmp_path / "key.pem", keys.pem(key))


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def opened(reference: str) -> Signer:
    return open_signer(reference, make_app(), KeyStore())


def test_a_file_signs_as_github_wants_it(path: Path, key: rsa.RSAPrivateKey) -> None:
    signer = open_signer(f"file:{path}", make_app(), KeyStore())

    signature = signer.sign(b"header.claims")

    key.public_key().verify(signature, b"header.claims", padding.PKCS1v15(), hashes.SHA256())
    assert signer.fingerprint() == fingerprint(key)
    assert jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).verify(
        b"header.claims", key.public_key(), signature
    )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("file:key.pem", "the signer file:key.pem is not an absolute path"),
        ("file:", "the signer file: is not an absolute path"),
        ("keyring:", "the signer keyring: names no fingerprint"),
        ("keyring:MD5:x", "the signer keyring:MD5:x names no fingerprint"),
        ("vault:key", "there is no signer of the kind vault"),
        ("", "there is no signer of the kind "),
    ],
)
def test_a_reference_that_means_nothing_is_refused(reference: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_signer(reference, make_app(), KeyStore())

    assert caught.value.message == message


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    signer = open_signer(f"file:{tmp_path}/absent.pem", make_app(), KeyStore())
    signer.forget()

    with pytest.raises(KeyUnavailable) as caught:
        signer.sign(b"x")

    assert caught.value.message == f"cannot open {tmp_path}/absent.pem: No such file or directory"
    assert caught.value.hint == (
        f"put the key there, or: ghapp key add FILE --app acme-bot --signer file:{tmp_path}/absent.pem"
    )


def test_a_file_that_may_not_be_opened_is_to_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "key.pem"  # not ENOENT, and root is refused too

    with pytest.raises(KeyUnavailable) as caught:
        read_key_file(str(path))

    assert caught.value.hint == f"ls -l {path}"


def test_a_key_that_was_forgotten_is_read_again_and_its_name_is_kept(path: Path, key: rsa.RSAPrivateKey) -> None:
    signer = FileSigner(str(path))
    first = signer.sign(b"x")
    signer.forget()
    assert signer._key is None

    assert signer.sign(b"x") == first
    signer.forget()
    path.unlink()

    assert signer.fingerprint() == fingerprint(key)
    with pytest.raises(KeyUnavailable, match="cannot open"):
        signer.sign(b"x")


def test_a_file_that_was_replaced_is_noticed_when_it_is_read_again(path: Path) -> None:
    signer = FileSigner(str(path))
    before = signer.sign(b"x")
    pool = keys.KeyPool()
    pool.take()
    write(path, keys.pem(pool.take()))

    assert signer.sign(b"x") == before
    signer.forget()
    with pytest.raises(KeyUnavailable) as caught:
        signer.sign(b"x")
    assert (caught.value.message, caught.value.hint) == (
        f"{path} holds another key than before",
        "ghapp daemon restart",
    )


def test_forgetting_while_others_sign_disturbs_nobody(path: Path) -> None:
    signer = FileSigner(str(path))
    over = threading.Event()
    failures: list[BaseException] = []

    def sign() -> None:
        try:
            for _ in range(8):
                signer.sign(b"x")
        except BaseException as error:  # noqa: BLE001  # shown by the assertion
            failures.append(error)

    def forget() -> None:
        while not over.is_set():
            signer.forget()

    signing = [threading.Thread(target=sign) for _ in range(2)]
    forgetting = threading.Thread(target=forget)
    for thread in [forgetting, *signing]:
        thread.start()
    for thread in signing:
        thread.join()
    over.set()
    forgetting.join()

    assert failures == []


class ForgetfulSigner(FileSigner):
    """Forgets at the worst moment: when somebody has just looked at the key."""

    forgetful = False
    _hidden: rsa.RSAPrivateKey | None = None

    @property
    def _key(self) -> rsa.RSAPrivateKey | None:
        value = self._hidden
        if self.forgetful:
            self._hidden = None
        return value

    @_key.setter
    def _key(self, value: rsa.RSAPrivateKey | None) -> None:
        self._hidden = value


def test_forgetting_between_the_look_and_the_use_disturbs_nobody(path: Path) -> None:
    signer = ForgetfulSigner(str(path))
    signature = signer.sign(b"x")
    signer.forgetful = True

    assert signer.sign(b"x") == signature
    assert signer.sign(b"x") == signature


# -- who may read the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_our_own_is_read(path: Path, mode: int, key: rsa.RSAPrivateKey) -> None:
    path.chmod(mode)

    assert read_key_file(str(path)) == keys.pem(key)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o777])
def test_a_file_that_others_can_reach_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)

    with pytest.raises(KeyUnavailable) as caught:
        read_key_file(str(path))

    assert (caught.value.message, caught.value.hint) == (
        f"{path} can be read by others (mode {mode:04o})",
        f"chmod 600 {path}",
    )


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.mark.parametrize("mode", [0o640, 0o660])
def test_group_bits_are_judged_by_the_owner(path: Path, mode: int, key: rsa.RSAPrivateKey) -> None:
    path.chmod(mode)
    if path.stat().st_uid == 0:
        assert read_key_file(str(path)) == keys.pem(key)
        return

    with pytest.raises(KeyUnavailable, match="can be read by others"):
        read_key_file(str(path))


@AS_ROOT
def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    os.chown(path, 4711, -1)

    with pytest.raises(KeyUnavailable) as caught:
        read_key_file(str(path))

    assert caught.value.message == f"{path} belongs to user 4711"


def test_the_target_of_a_symlink_is_judged(tmp_path: Path, path: Path, key: rsa.RSAPrivateKey) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)

    assert read_key_file(str(link)) == keys.pem(key)
    path.chmod(0o644)
    with pytest.raises(KeyUnavailable, match="can be read by others"):
        read_key_file(str(link))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "thing")

    with pytest.raises(KeyUnavailable, match="is not a regular file"):
        read_key_file(str(tmp_path / "thing"))


@pytest.mark.parametrize(("size", "fits"), [(MAX_PEM, True), (MAX_PEM + 1, False)])
def test_a_large_file_is_refused(tmp_path: Path, size: int, *, fits: bool) -> None:
    path = write(tmp_path / "large", b"x" * size)
    if fits:
        assert len(read_key_file(str(path))) == size
        return

    with pytest.raises(KeyUnavailable, match="is larger than"):
        read_key_file(str(path))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(KeyUnavailable) as caught:
        read_key_file("/proc/self/mem")

    assert caught.value.message.startswith(("cannot read /proc/self/mem: ", "cannot open /proc/self/mem: "))


def test_a_key_in_no_form_is_not_repeated(tmp_path: Path) -> None:
    path = write(tmp_path / "key.pem", b"-----BEGIN RSA PRIVATE KEY-----\nTWFya2Vy\n-----END RSA PRIVATE KEY-----\n")

    with pytest.raises(KeyUnavailable) as caught:
        FileSigner(str(path)).fingerprint()

    assert "TWFya2Vy" not in repr(caught.value) + str(caught.value) + caught.value.hint


def test_no_descriptor_is_left_open(tmp_path: Path, path: Path) -> None:
    def lowest() -> int:
        descriptor = os.open(path, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest()
    read_key_file(str(path))
    for refused in (tmp_path, write(tmp_path / "large", b"x" * (MAX_PEM + 1))):
        with pytest.raises(KeyUnavailable):
            read_key_file(str(refused))

    assert lowest() == before


class Shelf:
    """A key store that holds one key, under one name."""

    def __init__(self, account: str, key: rsa.RSAPrivateKey) -> None:
        self._account = account
        self._key = key

    def read(self, account: str, *, interactive: bool = False) -> rsa.RSAPrivateKey:  # noqa: ARG002  # as the real one
        if account != self._account:
            raise KeyMissing("the key is not in the keyring")
        return self._key


@pytest.mark.parametrize("number", ["4242", "Iv1"])
def test_a_key_is_found_in_the_keyring_under_the_apps_number_or_its_client_id(
    key: rsa.RSAPrivateKey, number: str
) -> None:
    name = fingerprint(key)
    app = make_app(app_id=4242, client_id="Iv1")
    shelf: Any = Shelf(f"github.com/{number}/{name}", key)

    signer = open_signer(f"keyring:{name}", app, shelf)

    assert signer.fingerprint() == name
    assert signer.sign(b"message") == key.sign(b"message", padding.PKCS1v15(), hashes.SHA256())


def test_a_key_that_is_not_in_the_keyring_says_so(key: rsa.RSAPrivateKey) -> None:
    shelf: Any = Shelf("github.com/1/other", key)

    with pytest.raises(KeyMissing):
        open_signer("keyring:SHA256:one=", make_app(app_id=1), shelf).sign(b"message")


def test_a_keyring_reference_without_a_fingerprint_is_refused() -> None:
    with pytest.raises(ConfigError, match="no fingerprint"):
        open_signer("keyring:one", make_app(), KeyStore())


def test_each_key_of_an_app_has_a_signer_also_one_that_makes_no_sense(path: Path, key: rsa.RSAPrivateKey) -> None:
    app = make_app(keys=("keyring:nonsense", f"file:{path}"))

    wrong, right = open_signers(app, KeyStore())

    for call in (wrong.fingerprint, lambda: wrong.sign(b"x")):
        with pytest.raises(KeyUnavailable, match="the signer keyring:nonsense names no fingerprint") as caught:
            call()
        assert caught.value.hint == "write keyring:SHA256:..."
    wrong.forget()
    assert right.fingerprint() == fingerprint(key)


@pytest.mark.parametrize(
    ("references", "message", "hint"),
    [
        ((), "the app bot has no key", "ghapp key add FILE --app bot"),
        (("keyring:x", "file:y"), "the signer keyring:x names no fingerprint", "write keyring:SHA256:..."),
    ],
)
def test_an_app_without_a_single_signer_is_refused(references: tuple[str, ...], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_signers(make_app("bot", keys=references), KeyStore())

    assert (caught.value.message, caught.value.hint) == (message, hint)
