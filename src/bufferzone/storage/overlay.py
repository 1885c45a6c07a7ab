"""What a directory that is an overlay consists of, as the kernel's table of mounts tells it.

A table has paths, and a path may lead elsewhere by now: engines mount their layers with other owners just
for the moment in which an overlay is made of them, and a mount may come from another mount namespace. So a
layer is believed only where the overlay shows something of it: a file with the same owner, mode, size and
times, to the nanosecond. Refuses: what this module does not know of overlayfs.
Source: Linux Documentation/filesystems/overlayfs.rst; fs/overlayfs/params.c, ovl_show_options().
"""

from __future__ import annotations

import os
import stat
from itertools import islice

from bufferzone.errors import HostError
from bufferzone.linux import mounttable
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: how a layer is read: given on where the same layers are mounted again
_READING = frozenset(("redirect_dir", "metacopy", "userxattr"))
#: what says nothing of what an overlay shows
_OTHER = frozenset(
    ("rw", "ro", "workdir", "xino", "uuid", "index", "nfs_export", "volatile", "fsync", "seclabel")
)
#: files of a layer that are looked for in the overlay: those of a layer above may hide many
_MOST_TRIES = 1000


class Overlay(Record):
    """An overlay: its directories, absolute, `lowers` the topmost first; `upper` empty: it has none.

    `options` are those of mount(2) that decide how its layers are read.
    """

    upper: str
    lowers: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What the names of its own extended attributes begin with."""
        return "user.overlay." if "userxattr" in self.options else "trusted.overlay."


class Unknown(HostError):
    """This is not known to be an overlay's layer, or not in a form that is understood."""

    def __init__(self, text: str) -> None:
        super().__init__(text, code="overlay")


def find(path: str) -> Overlay | None:
    """The overlay whose root the directory `path` is; None: it is something else. Raises `Unknown`."""
    try:
        row = mounttable.at(path)
    except OSError as error:
        raise Unknown(f"cannot look at {path}: {error.strerror}") from error
    if row is None or row.kind != "overlay" or row.root != "/":
        return None
    return parse(row.options)


def parse(text: str) -> Overlay:
    """The overlay that these options of the table of mounts tell of. Raises `Unknown`."""
    found, kept = dict[str, str](), list[str]()
    for option in text.split(","):
        key, _, value = option.partition("=")
        if key in _READING:
            kept.append(option)
        elif key in ("upperdir", "lowerdir"):
            found[key] = value
        elif key not in _OTHER:
            raise Unknown(f"an option of the overlay is unknown: {key}")
    upper = found.get("upperdir", "")
    lowers = tuple(found.get("lowerdir", "").split(":"))
    for directory in (upper, *lowers) if upper else lowers:
        # escaped characters, two colons (a layer of data alone), a path from where somebody was
        if not directory.startswith("/") or "\\" in directory:
            raise Unknown(f"a layer's path cannot be followed: {directory!a}")
    return Overlay(upper=upper, lowers=lowers, options=tuple(kept))


def walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """(relative path, lstat) of the directory `root` itself, whose path is empty, and of all below it, a
    directory before what is in it. Raises OSError, or `Unknown` where something else is mounted in it.
    """
    found = os.stat(root)
    device = found.st_dev
    yield "", found
    pending = [""]
    while pending:
        at = pending.pop()
        with os.scandir(f"{root}/{at}") as entries:
            rows = sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
        for name, found in rows:
            path = f"{at}/{name}" if at else name
            if stat.S_ISDIR(found.st_mode):
                if found.st_dev != device:
                    raise Unknown(f"something is mounted in the layer {root}: {path}")
                pending.append(path)
            yield path, found


def check_shown(overlay: Overlay, merged: str) -> None:
    """Raise `Unknown` unless the overlay at `merged` shows something of each of its layers; else OSError."""
    layers = (overlay.upper, *overlay.lowers) if overlay.upper else overlay.lowers
    if not _same(os.stat(layers[0]), os.stat(merged)):  # its root is that of the topmost
        raise Unknown(f"this is not the topmost layer: {layers[0]}")
    for layer in layers[1:]:
        if not any(_is_shown(merged, path, found) for path, found in islice(walk(layer), 1, _MOST_TRIES)):
            raise Unknown(f"nothing of this layer is seen: {layer}")


def _is_shown(merged: str, path: str, found: os.stat_result) -> bool:
    try:
        return _same(found, os.lstat(f"{merged}/{path}"))
    except OSError:
        return False


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    sizes = [0 if stat.S_ISDIR(each.st_mode) else each.st_size for each in (one, other)]
    facts = [
        (each.st_mode, each.st_uid, each.st_gid, each.st_mtime_ns, each.st_ctime_ns) for each in (one, other)
    ]
    return sizes[0] == sizes[1] and facts[0] == facts[1]
