"""Which file of which volume a descriptor is, and what this kernel has in its caches of it.

A volume is known by its device: each is a file system of its own to the guest. A file is found by the end of
its path, whatever mount namespace that is of, and proven by its inode.
"""

from __future__ import annotations

import os
import stat
import time

from bufferzone.linux import filelock, filesystem
from bufferzone.wire.agent import SHARE_PATH
from bufferzone.wire.locks import FLOCK, RANGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.container.lockcalls import Call
    from bufferzone.container.lockranges import Segment

_SURE_NS = 50_000_000  # a directory that changed a moment ago may change again within one tick of its mtime
#: files whose pages are mapped by those who lock them (SQLite's WAL index, LMDB's table of readers): two
#: kernels do not see one another's stores, so one kernel has all of such a file at a time
_MAPPED = ("-shm", "lock.mdb", "-lock")


class Place:
    """A file on a volume: `volume`, `path` below it, device and inode."""

    __slots__ = ("inode", "key", "mapped", "mount_point", "path", "volume")

    def __init__(self, volume: str, path: str, facts: os.stat_result) -> None:
        self.volume, self.path, self.inode = volume, path, facts.st_ino
        self.key = _key(facts)
        self.mapped = path.endswith(_MAPPED)
        self.mount_point = _mount_point(volume, path, facts.st_dev)

    @property
    def directory(self) -> str:
        """Where the guest's root finds the file's directory."""
        return os.path.dirname(f"{SHARE_PATH}/{self.volume}/{self.path}")


def key_of(fd: int) -> str:
    """An open file as the kernel's table of locks spells it."""
    return _key(os.fstat(fd))


def _key(facts: os.stat_result) -> str:
    return f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"


class File:
    """A file with a lock, held or wanted: what the host holds for this VM, and who is on the way."""

    __slots__ = (
        "asking",
        "flying",
        "held",
        "looks",
        "next_look",
        "number",
        "path_fd",
        "place",
        "told",
        "waiting",
        "watch",
    )

    def __init__(self, number: int, place: Place, path_fd: int) -> None:
        self.number, self.place, self.path_fd = number, place, path_fd
        self.held: dict[int, list[Segment]] = {FLOCK: [], RANGE: []}
        self.flying: list[Call] = []  # let go on by us, and perhaps not yet in the kernel's table
        self.asking = 0  # calls whose steps the host has not answered
        self.waiting = 0  # calls that are tried again later
        self.next_look = 0
        self.looks = 0  # how often in a row it was looked at in vain
        self.told = False  # the host knows which file it is
        self.watch = -1


class Volumes:
    """The volumes of all containers, and what else lies on the share and is not one."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._device: dict[int, str] = {}  # empty: no volume's
        self._files: dict[tuple[int, int], str] = {}  # a volume that is a single file

    def add(self, names: list[str], root: str) -> None:
        """The volumes `names` of a container with its root file system at `root`."""
        self._device.setdefault(os.stat(root).st_dev, "")
        for name in names:
            facts = os.stat(f"{SHARE_PATH}/{name}")
            if stat.S_ISDIR(facts.st_mode):
                self._device[facts.st_dev] = name
                self._names.append(name)
            else:
                self._files[facts.st_dev, facts.st_ino] = name

    def find(self, fd: int) -> Place | None:
        """Where an open file is, if it is on a volume and has a name there."""
        facts = os.fstat(fd)
        if (facts.st_dev, facts.st_ino) in self._files:
            return Place(self._files[facts.st_dev, facts.st_ino], "", facts)
        known = self._device.get(facts.st_dev)
        if known == "" or (known is None and filesystem.magic_of(fd) != filesystem.FUSE):
            return None
        for name in [known] if known else self._names:
            path = _path_in(name, os.readlink(f"/proc/self/fd/{fd}"), facts)
            if path is not None:
                self._device[facts.st_dev] = name  # a mount below the volume, where it was not known
                return Place(name, path, facts)
        if known and facts.st_nlink:
            raise OSError(37, "no name")  # ENOLCK: a lock that the other side could not see
        return None


class Names:
    """When this kernel last looked at the names in a directory."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}  # mtime, and when it was seen

    def refresh(self, place: Place) -> None:
        """Names that somebody else may have changed since are looked up again."""
        if not place.mount_point:
            return
        try:
            fd = os.open(place.directory, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # it was renamed: nobody finds the file by the old names
        try:
            changed = filelock.look_again(fd)
        finally:
            os.close(fd)
        before, at = self._seen.get(place.directory, (-1, 0))
        if before != changed or at - changed < _SURE_NS:
            filelock.forget_names(place.mount_point)
        if len(self._seen) > 1024:
            self._seen.clear()
        self._seen[place.directory] = (changed, time.time_ns())


def refresh_pages(fd: int) -> None:
    """What was read of the file before is read again; pages that are mapped go where its mtime tells."""
    filelock.look_again(fd)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def write_back(fd: int) -> None:
    """What was written through a mapping goes to the host; a failure is msync(2)'s to tell."""
    try:
        filelock.write_back(fd)
    except OSError:
        pass  # the kernel keeps it for the next msync(2) or fsync(2)


def _path_in(volume: str, path: str, facts: os.stat_result) -> str | None:
    """The end of `path` that leads to the same file below the volume; None: no end does."""
    parts = path.split("/")[1:]
    for at in range(len(parts) - 1, -1, -1):
        rest = "/".join(parts[at:])
        try:
            found = os.stat(f"{SHARE_PATH}/{volume}/{rest}", follow_symlinks=False)
        except OSError:
            continue  # no such file below the volume
        if (found.st_dev, found.st_ino) == (facts.st_dev, facts.st_ino):
            return rest
    try:
        top = os.stat(f"{SHARE_PATH}/{volume}")
    except OSError:
        return None  # its container is gone
    return "" if (top.st_dev, top.st_ino) == (facts.st_dev, facts.st_ino) else None


def _mount_point(volume: str, path: str, device: int) -> str:
    """The mount point above a file of a volume; empty for a volume that is a file."""
    if not path:
        return ""
    directory = os.path.dirname(f"{SHARE_PATH}/{volume}/{path}")
    while directory != f"{SHARE_PATH}/{volume}" and os.stat(os.path.dirname(directory)).st_dev == device:
        directory = os.path.dirname(directory)
    return directory
