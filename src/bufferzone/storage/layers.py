"""Layers of an overlay: a small one as a message to the guest, large ones as what they are known again by.

A fingerprint is a digest of all that lstat(2) tells of every file: a file that was written, replaced, given
to another owner or made anew has another time of its last change, which cannot be set (utimensat(2)). It
trusts no name, no engine's promise and nobody who can write the layer, save root, who can set the clock.
Nothing is read but directories: 7 microseconds a file.

A small layer is read whole. What only an overlay on this host could make sense of (metacopy, redirect_dir),
or what the guest's tmpfs cannot hold (user.* before Linux 6.6, ACLs), makes a layer one that is not small.
Source: Linux Documentation/filesystems/overlayfs.rst, fs/overlayfs/overlayfs.h (the names of its attributes).
"""

from __future__ import annotations

import os
import stat
import time

from bufferzone.digest import sha256
from bufferzone.record import Record
from bufferzone.storage.overlay import Unknown, walk
from bufferzone.wire.agent import Layer, LayerEntry, Xattr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: what belongs to the overlay that the layer was made in, and tells of no file
_NOTES = frozenset(("origin", "impure", "nlink", "uuid"))
_OPAQUE = "opaque"
_CAPABILITY = "security.capability"
#: nanoseconds in which a file may be written twice with the same time: the kernel's tick, at 100 Hz 10 ms;
#: where times have whole seconds, a second
_TICK_NS, _SECOND_NS = 50_000_000, 2_000_000_000


class Fingerprint(Record):
    """What some layers are known again by. `is_settled`: who changes a file of theirs from now on changes
    this too.
    """

    digest: str
    is_settled: bool


class Room(Record):
    """What a small layer may have at most: files, and bytes in all of them."""

    entries: int
    bytes: int


def fingerprint(roots: Sequence[str], salt: str) -> Fingerprint:
    """Of the layers in these directories, in this order; `salt` is what else must be the same. Raises
    OSError, `Unknown`.
    """
    now = time.time_ns()
    whole, newest, is_fine = sha256(salt.encode("utf-8", "surrogateescape")), 0, False
    for root in roots:
        for path, found in walk(root):
            row = (
                path,
                found.st_dev,
                found.st_ino,
                found.st_mode,
                found.st_nlink,
                found.st_uid,
                found.st_gid,
                found.st_size,
                found.st_rdev,
                found.st_mtime_ns,
                found.st_ctime_ns,
            )
            whole.update(repr(row).encode("utf-8", "surrogateescape"))
            newest = max(newest, found.st_ctime_ns)
            is_fine = is_fine or found.st_ctime_ns % 1_000_000_000 != 0
    margin = _TICK_NS if is_fine else _SECOND_NS
    return Fingerprint(digest=whole.hexdigest(), is_settled=newest < now - margin)


def read(root: str, prefix: str, room: Room) -> Layer:
    """The layer in the directory `root`, whose overlay's attributes begin with `prefix`. Raises OSError, or
    `Unknown` where it is not small.
    """
    layer, left, first = Layer(), room.bytes, dict[tuple[int, int], bytes]()
    for path, found in walk(root):
        if len(layer.entries) == room.entries:
            raise Unknown(f"more than {room.entries} files: {root}")
        entry = LayerEntry(
            path=os.fsencode(path),
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=found.st_mtime_ns,
            device=found.st_rdev,
        )
        identity = found.st_dev, found.st_ino
        if not stat.S_ISDIR(found.st_mode) and identity in first:
            entry.same_as = first[identity]
        else:
            first[identity] = entry.path
            _read_attributes(f"{root}/{path}", prefix, entry)
            left -= _read_data(f"{root}/{path}", found, entry, left)
        layer.entries.append(entry)
    return layer


def _read_data(place: str, found: os.stat_result, entry: LayerEntry, left: int) -> int:
    """What a file holds, or where a link leads, of at most `left` bytes; how many there are."""
    if stat.S_ISLNK(found.st_mode):
        entry.data = os.fsencode(os.readlink(place))
    elif stat.S_ISREG(found.st_mode) and found.st_size:
        if found.st_size > left:
            raise Unknown(f"too many bytes for a small layer: {place}")
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            entry.data = os.pread(fd, found.st_size, 0) if os.path.samestat(os.fstat(fd), found) else b""
        finally:
            os.close(fd)
        if len(entry.data) != found.st_size:
            raise Unknown(f"changed while it was read: {place}")
    if len(entry.data) > left:
        raise Unknown(f"too many bytes for a small layer: {place}")
    return len(entry.data)


def _read_attributes(place: str, prefix: str, entry: LayerEntry) -> None:
    for name in os.listxattr(place, follow_symlinks=False):
        ours = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if ours in _NOTES:
            continue
        value = os.getxattr(place, name, follow_symlinks=False)
        if ours == _OPAQUE and value == b"y":
            entry.opaque = True
        elif name == _CAPABILITY:
            entry.xattrs.append(Xattr(name=name, value=value))
        else:
            raise Unknown(f"an attribute that a small layer cannot have, {name}: {place}")
