"""Guest memory as a file: a private tmpfs in our own mount namespace, filled from a template.

It has to be a shared file, since virtiofsd maps the guest's memory (vhost-user); a private mapping of the
template would spare the copy but hide the guest's writes from virtiofsd.
"""

from __future__ import annotations

import errno
import os

from bufferzone.errors import HostError
from bufferzone.linux import mount as mnt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 16 << 20
#: shorter runs of zeros are not worth a hole: each hole costs a reader three system calls
_HOLE = 16 << 10
_BLOCK = 64 << 10


def make_file(directory: str, size: int, owner: int) -> tuple[str, int]:
    """Mount a tmpfs on the existing `directory` and make a file of `size` bytes in it, for uid `owner`.

    Returns (path, descriptor); the caller closes the descriptor, the mount goes with the mount namespace.
    """
    try:
        options = f"size={size},nr_inodes=8,mode=711"
        mnt.mount(
            "bufferzone-memory", directory, "tmpfs", mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC, options
        )
        path = os.path.join(directory, "memory")
        return path, create(path, size, owner)
    except OSError as error:
        raise HostError(
            f"cannot make guest memory in {directory}: {error.strerror}", code="memory"
        ) from error


def create(path: str, size: int, owner: int) -> int:
    """A new sparse file of `size` bytes that uid `owner` alone (and root) may open; returns its
    descriptor.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.ftruncate(fd, size)
    os.fchown(fd, owner, owner)
    return fd


def pack(source: int, target: int) -> int:
    """As `copy`, and runs of zero bytes become holes too; returns the bytes written. For files that are read
    often.
    """
    at = written = 0
    while (start := _data_from(source, at)) >= 0:
        at = os.lseek(source, start, os.SEEK_HOLE)
        while start < at:
            block = os.pread(source, min(_CHUNK, at - start), start)
            if not block:
                raise HostError("guest memory ended early", code="memory")
            for first, end in _filled(block):
                written += _write(target, memoryview(block)[first:end], start + first)
            start += len(block)
    return written


def _write(target: int, data: memoryview, at: int) -> int:
    """All of `data`: a file system that is nearly full takes a part before it refuses. Raises OSError."""
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], at + done)
    return done


def _filled(block: bytes) -> Iterator[tuple[int, int]]:
    """The ranges of `block` that are not `_HOLE` zero bytes or more."""
    zeros = bytes(_HOLE)
    first = -1
    for at in range(0, len(block), _HOLE):
        if block.startswith(zeros, at):
            if first >= 0:
                yield first, at
            first = -1
        elif first < 0:
            first = at
    if first >= 0:
        yield first, len(block)


def digest(fd: int, size: int) -> str:
    """SHA-256 of what is in the file: over every block that is not all zeros, with its offset.

    Holes and blocks of zeros count the same, so that a copy need not keep the holes. Raises `HostError`.
    """
    import hashlib  # hundreds of MiB, which no start reads

    whole, zeros, at = hashlib.sha256(b"%d" % size), bytes(_BLOCK), 0
    try:
        while at < size and (start := _data_from(fd, at)) >= 0:
            at = os.lseek(fd, start, os.SEEK_HOLE)
            at += -at % _BLOCK
            for offset in range(start - start % _BLOCK, at, _BLOCK):
                block = os.pread(fd, _BLOCK, offset)
                if block != zeros[: len(block)]:
                    whole.update(b"%d:" % offset)
                    whole.update(block)
        os.lseek(fd, 0, os.SEEK_SET)
        return whole.hexdigest()
    except OSError as error:
        raise HostError(f"cannot read: {error.strerror}", code="memory") from error


def copy(source: int, target: int) -> int:
    """Copy the data, not the holes, of `source` to `target`; returns the bytes copied. Raises `HostError`."""
    at = copied = 0
    try:
        while (start := _data_from(source, at)) >= 0:
            at = os.lseek(source, start, os.SEEK_HOLE)
            os.lseek(target, start, os.SEEK_SET)
            while start < at:
                moved = os.sendfile(target, source, start, min(_CHUNK, at - start))
                if moved == 0:
                    raise OSError(errno.EIO, "the template's memory ended early")
                start, copied = start + moved, copied + moved
        return copied
    except OSError as error:
        raise HostError(f"cannot copy the template's memory: {error.strerror}", code="memory") from error


def _data_from(fd: int, at: int) -> int:
    """Where data begins at or after `at`; -1 when a hole reaches up to the end."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return -1
        raise
