"""The content-addressed store of guest images: find, verify and publish one. Builds nothing, starts nothing.

    STORE/index.json          what is current: digest, and per recipe the input key, digest and pinned
    packages STORE/<digest>/           one image: vmlinux, initrd, config, contents, manifest.json
    STORE/cache/              packages as apt delivered them
    STORE/lock                flock(2): one builder at a time
    STORE/tmp-*/              a build under way; anybody who holds the lock may remove it

Importing this is cheap, since whatever boots a VM does: what only a builder
needs is imported where it is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re

from bufferzone.errors import HostError
from bufferzone.linux import identity
from bufferzone.model import ImageRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

KERNEL, INITRD, MANIFEST, INDEX = "vmlinux", "initrd", "manifest.json", "index.json"
#: root's; everybody else may boot what is in it
SYSTEM_STORE = "/var/lib/bufferzone/images"
SETUP_HINT = "run: bz setup"
KEEP = 3  # images that stay beside the current ones: sandboxes started a moment ago may still want theirs
_DIGEST = re.compile(r"[0-9a-f]{64}")


def default_store() -> str:
    """Where images live: /var/lib/bufferzone/images for root, below $XDG_DATA_HOME for everybody else."""
    if identity.is_real_root():
        return SYSTEM_STORE
    data = os.environ.get("XDG_DATA_HOME", "")
    if not data.startswith("/"):  # the XDG specification: a relative path is to be ignored
        data = os.path.join(os.path.expanduser("~"), ".local/share")
    return os.path.join(data, "bufferzone/images")


def digest_of(kernel_sha256: str, initrd_sha256: str, arguments: tuple[str, ...]) -> str:
    """The name of an image: SHA-256 over a canonical description of what a VM boots."""
    import hashlib

    description = {"arguments": list(arguments), "initrd": initrd_sha256, "kernel": kernel_sha256}
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def read_index(store: str) -> dict[str, Any]:
    """The index, empty when there is none or it is no JSON object: then everything is to be built."""
    try:
        with open(os.path.join(store, INDEX), "rb") as file:
            index = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise HostError(
            f"cannot read the image store {store}: {error.strerror}",
            hint=f"chmod 0644 {os.path.join(store, INDEX)}" if error.errno == errno.EACCES else "",
            code="image-store",
        ) from error
    return index if isinstance(index, dict) else {}


def packages_of(index: dict[str, Any]) -> list[tuple[str, str]]:
    """(fingerprint of a bufferzone package, digest of its image), oldest first; see `current.py`."""
    rows = index.get("packages")
    pairs = [row for row in rows if isinstance(row, list) and len(row) == 2] if isinstance(rows, list) else []
    return [(str(mark), str(digest)) for mark, digest in pairs]


def open_image(store: str, digest: str | None = None) -> ImageRef:
    """The image `digest`, or the current one; its files have the sizes of the manifest.

    Raises `HostError`: `image-missing`, or `image-damaged` naming the file.
    """
    wanted = digest or read_index(store).get("current")
    if not isinstance(wanted, str) or not _DIGEST.fullmatch(wanted):
        raise HostError(f"no guest image in {store}", hint=SETUP_HINT, code="image-missing")
    directory = os.path.join(store, wanted)
    if not os.path.isdir(directory):
        raise HostError(f"no guest image {wanted[:12]} in {store}", hint=SETUP_HINT, code="image-missing")
    manifest = read_manifest(directory)
    for name, facts in manifest["files"].items():
        _check_size(os.path.join(directory, name), facts["size"])
    return ImageRef(
        digest=wanted,
        directory=directory,
        kernel=os.path.join(directory, KERNEL),
        initrd=os.path.join(directory, INITRD),
        arguments=tuple(manifest["arguments"]),
    )


def read_manifest(directory: str) -> dict[str, Any]:
    """The manifest, its shape checked as far as booting needs it; raises `HostError` (`image-damaged`)."""
    path = os.path.join(directory, MANIFEST)
    try:
        with open(path, "rb") as file:
            manifest = json.load(file)
        facts = manifest["files"]
        if not {KERNEL, INITRD} <= facts.keys() or not all(
            _DIGEST.fullmatch(f["sha256"]) for f in facts.values()
        ):
            raise ValueError("incomplete")
        if not all(isinstance(argument, str) for argument in manifest["arguments"]):
            raise ValueError("arguments")
        if any("/" in name or not isinstance(f["size"], int) for name, f in facts.items()):
            raise ValueError("files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    return dict(manifest)


def verify(image: ImageRef) -> None:
    """Read every file of the image and compare with the manifest; raises `HostError` (`image-damaged`)."""
    manifest = read_manifest(image.directory)
    sums = {}
    for name, facts in manifest["files"].items():
        path = os.path.join(image.directory, name)
        _check_size(path, facts["size"])
        sums[name] = sha256_of(path)
        if sums[name] != facts["sha256"]:
            raise _damaged(path)
    if digest_of(sums[KERNEL], sums[INITRD], tuple(manifest["arguments"])) != image.digest:
        raise _damaged(os.path.join(image.directory, MANIFEST))


def sha256_of(path: str) -> str:
    """The SHA-256 of a file's content."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_size(path: str, size: int) -> None:
    try:
        actual = os.stat(path).st_size
    except OSError as error:
        raise _damaged(path) from error
    if actual != size:
        raise _damaged(path)


def _damaged(path: str) -> HostError:
    return HostError(f"the guest image is damaged: {path}", hint=SETUP_HINT, code="image-damaged")


@contextlib.contextmanager
def lock(store: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the store's lock, making the store first; `waiting` is called once when somebody else holds it."""
    with translated(store):
        os.makedirs(os.path.join(store, "cache"), exist_ok=True)
        fd = os.open(os.path.join(store, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def translated(store: str) -> Iterator[None]:
    """Turn an `OSError` into one line about the store: disk full, read-only, permission."""
    try:
        yield
    except OSError as error:
        where = error.filename or store
        raise HostError(
            f"cannot write the image store: {error.strerror}: {where}", code="image-store"
        ) from error


@contextlib.contextmanager
def workshop(store: str) -> Iterator[str]:
    """A fresh directory inside the store to build in; leftovers of killed builders go. Needs the lock."""
    import shutil
    import tempfile

    for name in os.listdir(store):
        if name.startswith("tmp-"):
            shutil.rmtree(os.path.join(store, name), ignore_errors=True)
    directory = tempfile.mkdtemp(prefix="tmp-", dir=store)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def publish(store: str, directory: str, digest: str, workshop_directory: str) -> ImageRef:
    """Move a complete image into its place, replacing a damaged one; readers see the old or the new."""
    final = os.path.join(store, digest)
    os.chmod(directory, 0o755)
    for name in os.listdir(directory):
        os.chmod(os.path.join(directory, name), 0o644)  # a VMM of another uid boots it, whatever the umask
        _fsync(os.path.join(directory, name))
    _fsync(directory)
    if os.path.lexists(final):
        os.rename(final, os.path.join(workshop_directory, "replaced"))
    os.rename(directory, final)
    _fsync(store)
    return open_image(store, digest)


def write_index(store: str, index: dict[str, Any]) -> None:
    """Replace the index in one step, on disk before it is visible. Needs the lock."""
    path = os.path.join(store, f"{INDEX}.new")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(index, file, indent=1, sort_keys=True)
        os.fchmod(file.fileno(), 0o644)  # ordinary users read root's, whatever the umask of who wrote it
    _fsync(path)
    os.rename(path, os.path.join(store, INDEX))
    _fsync(store)


def prune(store: str, index: dict[str, Any]) -> None:
    """Remove images that no recipe calls current, but for the newest `KEEP`. Needs the lock."""
    import shutil

    current = {row.get("digest") for row in index.get("recipes", {}).values()} | {index.get("current")}
    current |= {digest for _, digest in packages_of(index)}
    others = [name for name in os.listdir(store) if _DIGEST.fullmatch(name) and name not in current]
    others.sort(key=lambda name: os.stat(os.path.join(store, name)).st_mtime_ns, reverse=True)
    for name in others[KEEP:]:
        shutil.rmtree(os.path.join(store, name), ignore_errors=True)


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
