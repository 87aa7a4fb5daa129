"""``file:PATH``: a PEM that somebody else put there, such as a mounted secret of Docker or Kubernetes."""

import os
import shlex
import stat

from ghapp.errors import KeyUnavailable
from ghapp.private_key import MAX_PEM, load_key
from ghapp.signers.local import LocalSigner


class FileSigner(LocalSigner):
    """Signs with the key in a file, which is judged each time it is read."""

    def __init__(self, path: str, app: str = "NAME") -> None:
        super().__init__(lambda: load_key(read_key_file(path, app), source=path, known=True), path)


def read_key_file(path: str, app: str = "NAME") -> bytes:
    """Read `path` if nobody else may read it: opened once, and judged by what was opened, not by its name.

    A symlink's target is judged, so mounted secrets pass. Group bits are fine when root owns the file (systemd,
    Kubernetes' fsGroup). Raises `KeyUnavailable`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = f"ls -l {shlex.quote(str(path))}"
        if isinstance(error, FileNotFoundError):
            hint = f"put the key there, or: ghapp key add FILE --app {app} --signer {shlex.quote(f'file:{path}')}"
        raise KeyUnavailable(f"cannot open {path}: {error.strerror}", hint=hint) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyUnavailable(f"{path} is not a regular file", hint=f"ls -ld {shlex.quote(str(path))}")
        if status.st_uid not in {0, os.geteuid()}:
            raise KeyUnavailable(
                f"{path} belongs to user {status.st_uid}", hint=f"sudo chown $(id -u) {shlex.quote(path)}"
            )
        forbidden = 0o007 if status.st_uid == 0 else 0o077
        if status.st_mode & forbidden:
            raise KeyUnavailable(
                f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"chmod 600 {shlex.quote(str(path))}",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            pem = file.read(MAX_PEM + 1)
    except OSError as error:
        raise KeyUnavailable(f"cannot read {path}: {error.strerror}", hint="see dmesg") from None
    finally:
        os.close(descriptor)
    if len(pem) > MAX_PEM:
        raise KeyUnavailable(f"{path} is larger than {MAX_PEM} bytes", hint=f"file {shlex.quote(str(path))}")
    return pem
