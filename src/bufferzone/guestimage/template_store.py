"""The store of VM templates: memory and device state of a VM stopped just before its first container.

    STORE/KEY/memory     guest memory, sparse, as the memory backend file left it
    STORE/KEY/state      QEMU's device state (migration stream without memory)
    STORE/KEY/meta.json  the shape, sizes, times: what a reader checks before it trusts the two
    STORE/lock           flock(2) of whoever publishes or removes
    STORE/KEY.lock       flock(2) of whoever makes this one: the others boot cold and do not wait
    STORE/tmp-*/         a template under way

A template is memory that will be executed: it is used only when directory and files belong to us alone, have
the sizes and times that meta.json says, and the device state, which QEMU parses, has its SHA-256. Anything
else is no template. `snapshot/template.py` makes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat

from bufferzone.digest import sha256
from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

MEMORY, STATE, META = "memory", "state", "meta.json"
#: a fact: whether the guest has the device of its share, not mounted, in this template
SHARE = "share"
#: templates kept, and bytes on disk; least recently used go first
KEEP, MOST_BYTES = 8, 4 << 30
_KEY_CHARACTERS = frozenset("0123456789abcdef")
#: of memory that VMMs map by its name, each the user of a jail that shows it
_MAPPED_MODE = 0o444
_KEY_LENGTH = 32


class Template:
    """An opened template: both files as read-only descriptors, which it owns. Valid even when removed.

    It is a `vm.saved.SavedVm`.
    """

    noun = "template"
    disk_fd = -1
    is_mappable = True

    def __init__(self, key: str, memory_fd: int, state_fd: int, meta: Mapping[str, Any]) -> None:
        self.key, self.memory_fd, self.state_fd, self.meta = key, memory_fd, state_fd, meta
        self.carries_share = bool(meta.get(SHARE))

    def check_memory(self, fd: int) -> None:
        """Nothing: sizes and times were compared when it was opened, and the files are ours alone."""

    def close(self) -> None:
        """Close both files."""
        os.close(self.memory_fd)
        os.close(self.state_fd)


def default_store(image_store: str) -> str:
    """Templates live beside the images they were booted from."""
    return os.path.join(os.path.dirname(image_store.rstrip("/")), "templates")


def key_of(shape: Mapping[str, object]) -> str:
    """The name of a template: a hash of everything that must be equal for its memory to make sense."""
    return sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def open_template(store: str, key: str) -> Template | None:
    """The template `key`, checked, or None when there is none.

    Raises `HostError` (`template-damaged`) when there is one that must not be used.
    """
    directory = os.path.join(store, key)
    while True:
        try:
            return _open(directory, key)
        except _Gone:
            pass  # removed or replaced while we looked: look again


class _Gone(Exception):
    """The directory that was being checked is no longer there."""


def _open(directory: str, key: str) -> Template | None:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _damaged(directory, error.strerror or "unreadable") from error
    opened: list[int] = []
    try:
        _check_private(directory, os.fstat(fd))
        meta = _read_meta(directory, fd)
        for name in (MEMORY, STATE):
            opened.append(_open_checked(directory, fd, name, meta))
        os.utime(directory)  # the least recently used goes first
        return Template(key, opened[0], opened[1], meta)
    except BaseException as error:
        for number in opened:
            os.close(number)
        if isinstance(error, HostError) and not _is_at(directory, fd):
            raise _Gone from error
        raise
    finally:
        os.close(fd)


def _is_at(path: str, fd: int) -> bool:
    """Whether `fd` is what `path` names now."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False


def _read_meta(directory: str, fd: int) -> dict[str, Any]:
    try:
        meta_fd = os.open(META, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        with open(meta_fd, "rb") as file:
            _check_private(directory, os.fstat(file.fileno()))
            meta = json.loads(file.read(1 << 16))
        return {
            "files": {name: tuple(meta["files"][name]) for name in (MEMORY, STATE)},
            "sha256": str(meta["sha256"]),
            **meta.get("facts", {}),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, f"{META}: {error}") from error


def _open_checked(directory: str, fd: int, name: str, meta: Mapping[str, Any]) -> int:
    try:
        number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError as error:
        raise _damaged(directory, f"{name}: {error.strerror}") from error
    try:
        found = os.fstat(number)
        _check_private(directory, found, shown=name == MEMORY)
        if _fingerprint(found) != meta["files"][name]:
            raise _damaged(directory, f"{name} was changed after it was written")
        if name == STATE and _sha256(number, found.st_size) != meta["sha256"]:
            raise _damaged(directory, f"{name} is not what was written")
    except BaseException:
        os.close(number)
        raise
    return number


def _fingerprint(found: os.stat_result) -> tuple[int, int, int, int]:
    """Size, allocated blocks, times of the last write and change: a truncated, replaced or rewritten file
    differs. The time of a change cannot be set (utimensat(2)), but with the clock.
    """
    return found.st_size, found.st_blocks, found.st_mtime_ns, found.st_ctime_ns


def _sha256(fd: int, size: int) -> str:
    """Of a file of less than a MiB, as all device states are; the memory is too large for a warm start."""
    total = sha256()
    for offset in range(0, size, 1 << 20):
        total.update(os.pread(fd, 1 << 20, offset))
    return total.hexdigest()


def _check_private(directory: str, found: os.stat_result, *, shown: bool = False) -> None:
    """`shown`: it may have `_MAPPED_MODE`; its directory is private in any case."""
    mode = found.st_mode & 0o7777
    if found.st_uid != os.geteuid() or (mode & 0o077 and not (shown and mode == _MAPPED_MODE)):
        raise _damaged(directory, "not private to this user")


def _damaged(directory: str, reason: str) -> HostError:
    return HostError(
        f"VM template {directory}: {reason}",
        code="template-damaged",
        hint="it will be made again automatically",
    )


@contextlib.contextmanager
def making(store: str, key: str) -> Iterator[str | None]:
    """A private directory to make template `key` in, or None while somebody else is making it."""
    os.makedirs(store, 0o700, exist_ok=True)
    path = os.path.join(store, f"{key}.lock")
    lock = _try_lock(path)
    while lock >= 0 and not _is_at(path, lock):  # `prune` removed the file between open and flock
        os.close(lock)
        lock = _try_lock(path)
    if lock < 0:
        yield None
        return
    try:
        directory = _new_directory(store, f"tmp-{key}-")
        try:
            yield directory
        finally:
            _remove_tree(directory)
    finally:
        os.close(lock)


def _try_lock(path: str) -> int:
    """The locked file, made if need be; -1 when somebody else has locked it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def publish(
    store: str, key: str, directory: str, facts: Mapping[str, Any], *, is_mapped: bool = False
) -> None:
    """Move a finished template from its `making` directory into place, with its meta.json; atomic.

    `is_mapped`: VMMs, each of a user of its own, map the memory by its name, in their jails. Only there: the
    directory is private.
    """
    files = {}
    for name in (MEMORY, STATE):
        path = os.path.join(directory, name)
        os.chown(path, os.geteuid(), os.getegid())
        os.chmod(path, _MAPPED_MODE if is_mapped and name == MEMORY else 0o600)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)  # delayed allocation settles: st_blocks is final
            found = os.fstat(fd)
            files[name] = _fingerprint(found)
            digest = _sha256(fd, found.st_size) if name == STATE else ""
        finally:
            os.close(fd)
    meta = json.dumps(
        {"files": files, "sha256": digest, "facts": dict(facts)}, indent=1, sort_keys=True
    ).encode()
    with open(os.path.join(directory, META), "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(meta)
        file.flush()
        os.fsync(file.fileno())
    with _locked(store):
        _remove(store, key)
        os.rename(directory, os.path.join(store, key))
        os.mkdir(directory)  # `making` removes it


def listing(store: str) -> list[dict[str, Any]]:
    """Every template, most recently used first: key, bytes on disk, used_ns, and the facts of its shape."""
    rows = []
    names = os.listdir(store) if os.path.isdir(store) else []
    for key in filter(_is_key, names):
        directory = os.path.join(store, key)
        try:
            size = sum(os.stat(os.path.join(directory, name)).st_blocks * 512 for name in (MEMORY, STATE))
            with open(os.path.join(directory, META), "rb") as file:
                facts = json.load(file).get("facts", {})
            rows.append({**facts, "key": key, "bytes": size, "used_ns": os.stat(directory).st_mtime_ns})
        except (OSError, ValueError, AttributeError, TypeError):
            rows.append({"key": key, "bytes": 0, "used_ns": 0, "damaged": True})
    return sorted(rows, key=lambda row: row["used_ns"], reverse=True)


def remove(store: str, key: str) -> bool:
    """Remove one template; whether it was there. Sandboxes that came from it are not touched."""
    if not _is_key(key):
        return False
    with _locked(store):
        return _remove(store, key)


def prune(store: str, *, keep: int, most_bytes: int) -> list[str]:
    """Remove the least recently used beyond `keep` templates or `most_bytes`, and what killed makers left."""
    removed = []
    with _locked(store):
        total = 0
        for index, row in enumerate(listing(store)):
            total += row["bytes"]
            if row.get("damaged") or index >= keep or total > most_bytes:
                _remove(store, row["key"])
                removed.append(row["key"])
        _tidy(store)
    return removed


def _tidy(store: str) -> None:
    """Remove directories that nobody works in, and locks of keys that have no template."""
    names = os.listdir(store)
    keys = {name.split("-")[1] for name in names if name.startswith("tmp-")}
    keys |= {name.removesuffix(".lock") for name in names if _is_key(name.removesuffix(".lock"))}
    for key in keys:
        path = os.path.join(store, f"{key}.lock")
        lock = _try_lock(path) if _is_key(key) else -1
        if lock < 0 and _is_key(key):
            continue
        for name in names:
            if name.startswith(f"tmp-{key}-"):
                _remove_tree(os.path.join(store, name))
        if lock >= 0:
            if not os.path.isdir(os.path.join(store, key)):
                os.unlink(path)
            os.close(lock)


def _is_key(name: str) -> bool:
    return len(name) == _KEY_LENGTH and _KEY_CHARACTERS.issuperset(name)


def _remove(store: str, key: str) -> bool:
    path = os.path.join(store, key)
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return True
    except FileNotFoundError:
        return False
    gone = _new_directory(store, "tmp-gone-")
    os.rename(path, os.path.join(gone, key))  # readers see it whole or not at all
    _remove_tree(gone)
    return True


@contextlib.contextmanager
def _locked(store: str) -> Iterator[None]:
    os.makedirs(store, 0o700, exist_ok=True)
    fd = os.open(os.path.join(store, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _new_directory(store: str, prefix: str) -> str:
    path = os.path.join(store, prefix + os.urandom(8).hex())
    os.mkdir(path, 0o700)
    return path


def _remove_tree(path: str) -> None:
    """What stays is for `_tidy` to try again."""
    import shutil  # every start imports this module, few remove anything

    shutil.rmtree(path, ignore_errors=True)
