"""The VM's locks of files in its shared tree, held here on the host, where every kernel can see them.

One open file description per file and kind stands for the whole VM, which sorts out its own processes. The
locks go with the descriptors: when the VM ends, and when this process does. The guest names files, and is
hostile: a name is resolved below the volume by the kernel, without symbolic links; only a regular file with
the inode that the guest says is opened, and nothing is read from it or written to it. Never waits.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from bufferzone.linux import filelock
from bufferzone.linux.paths import open_below
from bufferzone.wire.locks import EXCLUSIVE, FLOCK, RANGE, SHARED, LockResult, LockStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.storage.share import Tree

#: files of one VM that are locked at a time; more get ENOLCK
MOST_FILES = 1024
_MODES = {0: fcntl.LOCK_UN, SHARED: fcntl.LOCK_SH, EXCLUSIVE: fcntl.LOCK_EX}
_TYPES = {0: filelock.UNLOCK, SHARED: filelock.READ, EXCLUSIVE: filelock.WRITE}
_CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ETXTBSY)


class Keeper:
    """The locks of one VM on what is in `tree`. One thread uses it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._paths: dict[int, int] = {}  # the guest's number of a file -> O_PATH descriptor
        self._open: dict[tuple[int, int], int] = {}  # that and the kind of lock -> descriptor that has it

    def take(self, step: LockStep) -> LockResult:
        """Carry out one step; whatever is wrong with it is its result."""
        try:
            return self._take(step)
        except OSError as error:
            return LockResult(error=error.errno or errno.EIO)

    def _take(self, step: LockStep) -> LockResult:
        if step.forget:
            self._forget(step.file)
            return LockResult()
        if step.kind not in (FLOCK, RANGE) or step.mode not in _MODES or not 0 <= step.start < step.end:
            return LockResult(error=errno.EINVAL)
        if step.volume:
            self._find(step)
        fd = self._descriptor(step.file, step.kind)
        if step.test:
            kind, start, end = filelock.test_range(fd, _TYPES[step.mode], step.start, step.end)
            mode = {filelock.READ: SHARED, filelock.WRITE: EXCLUSIVE}.get(kind, 0)
            return LockResult(mode=mode, start=start, end=end)
        if step.kind == FLOCK:
            fcntl.flock(fd, _MODES[step.mode] | fcntl.LOCK_NB)
        else:
            filelock.set_range(fd, _TYPES[step.mode], step.start, step.end)
        return LockResult()

    def _find(self, step: LockStep) -> None:
        """Keep hold of the file that the step names."""
        if step.file in self._paths:
            return
        if len(self._paths) >= MOST_FILES:
            raise OSError(errno.ENOLCK, "too many locked files")
        if step.volume not in self._tree.names() or b"\0" in step.path:
            raise OSError(errno.ENOENT, "no such volume")
        found = open_below(self._tree.fd, step.volume, os.O_PATH)
        if step.path:
            volume = found
            try:
                found = open_below(volume, os.fsdecode(step.path), os.O_PATH)
            finally:
                os.close(volume)
        try:
            facts = os.fstat(found)
            if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
                raise OSError(errno.ENOLCK, "not a file")
            if facts.st_ino != step.inode:
                raise OSError(errno.ENOLCK, "another file by now")
        except OSError:
            os.close(found)
            raise
        self._paths[step.file] = found

    def _descriptor(self, file: int, kind: int) -> int:
        """The open file description whose locks of `kind` are the VM's."""
        fd = self._open.get((file, kind))
        if fd is None:
            path = self._paths.get(file)
            if path is None:
                raise OSError(errno.ENOLCK, "no such file")
            fd = self._open[file, kind] = _open(path, for_ranges=kind == RANGE)
        return fd

    def _forget(self, file: int) -> None:
        for kind in (FLOCK, RANGE):
            fd = self._open.pop((file, kind), -1)
            if fd >= 0:
                os.close(fd)
        path = self._paths.pop(file, -1)
        if path >= 0:
            os.close(path)

    def close(self) -> None:
        """Give every lock back. May be called twice."""
        for file in list(self._paths):
            self._forget(file)


def _open(path: int, *, for_ranges: bool) -> int:
    """Open what an O_PATH descriptor refers to; for writing where exclusive range locks are to be had."""
    name = f"/proc/self/fd/{path}"
    if for_ranges:
        try:
            return os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except IsADirectoryError:
            pass
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
    return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
