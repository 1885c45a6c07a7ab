"""Who saved a checkpoint: its manifest carries an HMAC-SHA256 with a key that this host keeps (RFC 2104).

    KEY    `checkpoint.key` beside the store of guest images: 32 random bytes, mode 0600, made once

The manifest holds the SHA-256 of every file, so that nothing of a checkpoint can be changed without the key.
Whoever wrote a checkpoint feeds the VMM's migration stream and the memory that is executed again, therefore
one of another host, or of another user, is taken only where the settings say so (`foreign_checkpoints`).
"""

from __future__ import annotations

import errno
import json
import os

from bufferzone.errors import HostError
from bufferzone.linux.ignoring import ignoring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.config import Settings

FIELD = "seal"
_SIZE = 32


def place(settings: Settings) -> str:
    """The file of the key."""
    return os.path.join(os.path.dirname(settings.image_store.rstrip("/")), "checkpoint.key")


def key(settings: Settings) -> bytes:
    """This host's key, made where there is none. Raises `HostError`."""
    path = place(settings)
    try:
        return _read(path) or _make(path)
    except OSError as error:
        raise HostError(f"the key of checkpoints, {path}: {error.strerror}", code="checkpoint-key") from error


def of(manifest: dict[str, Any], key: bytes) -> str:
    """The seal that belongs in `manifest`, hexadecimal."""
    import hmac  # every shim imports this module, few seal anything

    told = {name: value for name, value in manifest.items() if name != FIELD}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def check(manifest: dict[str, Any], directory: str, settings: Settings) -> None:
    """Raise `HostError` `checkpoint-foreign` unless it was saved here, or may come from elsewhere."""
    import hmac

    if settings.foreign_checkpoints or hmac.compare_digest(manifest[FIELD], of(manifest, key(settings))):
        return
    raise HostError(
        f"the checkpoint {directory} was saved by another host or user, or was changed",
        hint="`foreign_checkpoints = true` in the settings takes those: only where you trust who wrote it",
        code="checkpoint-foreign",
    )


def _read(path: str) -> bytes:
    """The key; empty where there is none. One that others can read, or wrote, is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise OSError(errno.EPERM, "belongs to another user, or others may read it")
        value = file.read(_SIZE + 1)
    if len(value) != _SIZE:
        raise OSError(errno.EINVAL, f"is not {_SIZE} bytes long")
    return value


def _make(path: str) -> bytes:
    """A new key, or that of whoever was faster; it appears whole (link(2))."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(os.urandom(_SIZE))
            file.flush()
            os.fsync(file.fileno())
        with ignoring(errno.EEXIST):
            os.link(new, path)
    finally:
        with ignoring(errno.ENOENT):
            os.unlink(new)
    return _read(path)
