"""Images of root file systems that are used again, found by the fingerprint of what they were made of.

    DIRECTORY/FINGERPRINT.erofs        read-only, locked (flock(2), shared) by each sandbox whose VM has it
    DIRECTORY/FINGERPRINT.BOOT.erofs   the same, perhaps not on the disk yet: for this boot alone
    DIRECTORY/lock                     flock(2) of whoever makes room

A file gets its name when it is whole, so that makers that are killed leave nothing and of several at once one
is kept. No start waits for the disk: what a power failure may have cut short is of no other boot, and gets
its lasting name from who uses it once the kernel has written it. An image is what a jailed mkfs.erofs wrote,
so perhaps what a hostile tree had it write; but its name is that of that tree alone, and comes from us. A
name is believed only in a directory, and of a file, that nobody but us can write, and a file only where it
is as long as its superblock says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from bufferzone.errors import HostError
from bufferzone.linux import nameless
from bufferzone.linux.ignoring import ignoring
from bufferzone.log import passing_over
from bufferzone.storage import erofs

_SUFFIX = ".erofs"
_DIGEST = frozenset("0123456789abcdef")
#: seconds after which the kernel has written what is dirty: 30 until it is old enough, 5 between two looks
#: (Documentation/admin-guide/sysctl/vm.rst, dirty_expire_centisecs), and some
_WRITTEN_S = 60


class Cache:
    """The images in `directory`, which is made where it is missing; about `most` bytes are kept.

    Owns `fd`, the directory: files are found through it, and so on the mount where it was opened, in whatever
    mount namespace we are by then. Raises `HostError`.
    """

    def __init__(self, directory: str, most: int) -> None:
        self.path, self._most = directory, most
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                self._boot = file.read().strip()
            os.makedirs(directory, 0o700, exist_ok=True)
            self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot use {directory}: {error.strerror}", code="root-cache") from error
        found = os.fstat(self.fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            os.close(self.fd)
            raise HostError(f"somebody else may write to {directory}", code="root-cache")

    @property
    def place(self) -> str:
        """A path to the directory, of this process."""
        return f"/proc/self/fd/{self.fd}"

    def close(self) -> None:
        """Close the directory."""
        os.close(self.fd)

    def open(self, digest: str) -> int:
        """The image made of what has this fingerprint, locked as long as somebody has this descriptor; -1:
        there is none that can be believed. It is the most recently used now.
        """
        fd = self._open(f"{digest}{_SUFFIX}")
        if fd >= 0:
            return fd
        unsafe = self._of_this_boot(digest)
        fd = self._open(unsafe)
        if fd >= 0 and os.fstat(fd).st_mtime < time.time() - _WRITTEN_S:
            with passing_over(f"{unsafe} keeps its name", OSError):
                os.fsync(fd)
                # not link and unlink: who opened it by the old name has to have it by a name
                os.rename(unsafe, f"{digest}{_SUFFIX}", src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return fd

    def _of_this_boot(self, digest: str) -> str:
        return f"{digest}.{self._boot}{_SUFFIX}"

    def _open(self, name: str) -> int:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found = os.fstat(fd)
            # between open and flock it may have been removed
            if _is_ours(found) and erofs.is_whole(fd) and self._names(name, found):
                os.utime(fd, ns=(time.time_ns(), found.st_mtime_ns))
                return fd
        except OSError:
            pass  # somebody is removing it
        os.close(fd)
        return -1

    def keep(self, fd: int, digest: str) -> None:
        """Give the nameless image behind `fd`, which is locked from now on, its name, and make room for it.
        One that is there by now is as good. Raises OSError.
        """
        found = os.fstat(fd)
        if found.st_blocks * 512 > self._most:
            return
        if found.st_uid != os.geteuid():
            os.fchown(fd, os.geteuid(), os.getegid())
        fcntl.flock(fd, fcntl.LOCK_SH)
        if self._clear(f"{digest}{_SUFFIX}"):
            return
        name = self._of_this_boot(digest)
        self._clear(name)
        with ignoring(errno.EEXIST):
            nameless.give_name(fd, f"{self.place}/{name}")
        self.make_room()

    def _clear(self, name: str) -> bool:
        """Whether there is an image of this name; what has it and cannot be believed is removed."""
        fd = self._open(name)
        if fd < 0:
            self._remove(name)
            return False
        os.close(fd)
        return True

    def make_room(self) -> list[str]:
        """Remove those of another boot, and the least recently used beyond `most` bytes, but none that a VM
        has; the names.
        """
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = []
            for name in filter(_is_image, os.listdir(self.fd)):
                found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
                boot = name.removesuffix(_SUFFIX)[65:]
                is_lost = boot not in ("", self._boot)
                rows.append((not is_lost, found.st_atime_ns, found.st_blocks * 512, name))
            total = sum(row[2] for row in rows)
            removed = []
            for is_of_use, _, size, name in sorted(rows):
                if (total > self._most or not is_of_use) and self._remove(name):
                    total -= size
                    removed.append(name)
            return removed
        finally:
            os.close(lock)

    def _remove(self, name: str) -> bool:
        """Remove it unless it is in use; whether it was removed."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._names(name, os.fstat(fd)):
                return False
            os.unlink(name, dir_fd=self.fd)
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    def _names(self, name: str, found: os.stat_result) -> bool:
        """Whether this is the file that has the name now."""
        try:
            return os.path.samestat(os.stat(name, dir_fd=self.fd, follow_symlinks=False), found)
        except OSError:
            return False


def _is_image(name: str) -> bool:
    digest, _, _ = name.partition(".")
    return name.endswith(_SUFFIX) and len(digest) == 64 and _DIGEST.issuperset(digest)


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o222
