"""Writes the small layers of a root file system into the guest's memory, as overlayfs wants them.

Source: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
"""

from __future__ import annotations

import os
import stat

from bufferzone.errors import CallerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.wire.agent import Layer, LayerEntry

_OPAQUE = "trusted.overlay.opaque"


def write(directory: str, layer: Layer) -> None:
    """Make `directory` and the layer in it. Raises `CallerError` or OSError."""
    root = os.fsencode(directory)
    for entry in layer.entries:
        place = _place(root, entry.path)
        _make(root, place, entry)
    for entry in reversed(layer.entries):  # what is made in a directory changes its time
        times = entry.mtime_ns, entry.mtime_ns
        os.utime(_place(root, entry.path), ns=times, follow_symlinks=False)


def _place(root: bytes, path: bytes) -> bytes:
    if not path:
        return root
    if any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise CallerError(f"not a path in a layer: {path!r}")
    return root + b"/" + path


def _make(root: bytes, place: bytes, entry: LayerEntry) -> None:
    if entry.same_as:
        os.link(_place(root, entry.same_as), place, follow_symlinks=False)
        return
    kind = stat.S_IFMT(entry.mode)
    if kind == stat.S_IFDIR:
        os.mkdir(place)
    elif kind == stat.S_IFLNK:
        os.symlink(entry.data, place)
    elif kind == stat.S_IFREG:
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(entry.data)
    else:
        os.mknod(place, entry.mode, entry.device)
    os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
    if kind != stat.S_IFLNK:
        os.chmod(place, stat.S_IMODE(entry.mode))  # after chown(2), which takes set-user-ID away
    for attribute in entry.xattrs:  # so does a write, or a change of owner, with capabilities
        os.setxattr(place, attribute.name, attribute.value, follow_symlinks=False)
    if entry.opaque:
        os.setxattr(place, _OPAQUE, b"y", follow_symlinks=False)
