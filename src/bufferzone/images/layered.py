"""A file of an image, read through its layers as an overlay of them would show it. Mounts nothing.

For the few small files that are wanted before there is a container, such as /etc/passwd. Links lead
nowhere but into the image. Source: Linux Documentation/filesystems/overlayfs.rst (whiteouts, opaque
directories).
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_LINKS = 20
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def read(layers: Sequence[str], path: str, most: int) -> bytes:
    """The first `most` bytes of the regular file `path`; nothing where there is none. `layers`: topmost
    first.
    """
    pending = [part for part in path.split("/") if part not in ("", ".")]
    at: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part == "..":
            at = at[:-1]
            continue
        place = _find(layers, [*at, part])
        if place and os.path.islink(place):
            links += 1
            target = os.readlink(place)
            if links > _MOST_LINKS:
                return b""
            pending = [word for word in target.split("/") if word not in ("", ".")] + pending
            at = [] if target.startswith("/") else at
        else:
            at.append(part)
    return _content(_find(layers, at), most)


def _content(place: str, most: int) -> bytes:
    if not place:
        return b""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, most) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _find(layers: Sequence[str], parts: list[str]) -> str:
    """The topmost of that name, whose directories are none of them links; empty: it is not there."""
    for layer in layers:
        place, opaque = layer, False
        for index, part in enumerate(parts):
            opaque = opaque or (index > 0 and _is_opaque(place))
            place = f"{place}/{part}"
            try:
                found = os.lstat(place)
            except OSError:
                break  # no such name in this layer, or below a file
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                return ""  # removed in this layer
            if index < len(parts) - 1 and not stat.S_ISDIR(found.st_mode):
                return ""
        else:
            return place
        if opaque:
            return ""
    return ""


def _is_opaque(directory: str) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(directory, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            pass  # it has none
    return False
