"""Packs a directory into an EROFS image, and knows an image by its first bytes.

mkfs.erofs reads what a container image brought, so it runs in a jail of its own: it sees the directory
read-only, without what is mounted below it, and one file that has no name on the host. Source: mkfs.erofs(1),
Linux fs/erofs/erofs_fs.h and fs/ext4/ext4.h (magic numbers).
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import time

from bufferzone import allowlists, jail, programs
from bufferzone.errors import HostError
from bufferzone.linux import landlock, nameless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.spawn import Child

_PROGRAM = "mkfs.erofs"
_PLACES = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/sbin")
_SOURCE = "/tree"
#: name -> where its superblock's magic number lies, and the number
_MAGIC = {"erofs": (1024, 0xE0F5E1E2.to_bytes(4, "little")), "ext4": (1024 + 56, b"\x53\xef")}
#: files of any owner and mode are read; what the jail shows is all there is to read
_CAPABILITIES = ("CAP_DAC_READ_SEARCH",)
#: seconds until an image has to be there: a file that became a FIFO after mkfs.erofs saw it is read for ever
DEADLINE_S = 600.0
_FREE_PART = 16  # of the disk's free space one part is left


class Packing:
    """mkfs.erofs at work. Owns the process, its words and the image's descriptor until `image`.

    `layers`: nothing belongs above the image; see `sandbox.rootlayers`, where something does.
    """

    layers: tuple[()] = ()

    def __init__(self, child: Child, image_fd: int, log_fd: int, source: str, most: int) -> None:
        self._child, self._fd, self._log, self._source = child, image_fd, log_fd, source
        self._most, self._until = most, time.monotonic() + DEADLINE_S

    def image(self) -> int:
        """Wait for the end; a read-only descriptor of the image, the caller's. Raises `HostError`."""
        status = self._child.wait_exit(max(0.0, self._until - time.monotonic()))
        if status != 0:
            self._child.kill()
            raise HostError(
                f"cannot pack {self._source} into an image: {self._why(status)}",
                code="pack",
                hint=self._child.denied or "rootfs = virtiofs",
            )
        os.fchmod(self._fd, 0o444)  # it has no name; a VMM of another user may have to open it by one
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def _why(self, status: int | None) -> str:
        if status is None:
            return f"not done after {DEADLINE_S:g} s"
        said = os.pread(self._log, 1 << 16, 0).decode("utf-8", "replace")
        if status == -signal.SIGXFSZ or os.strerror(errno.EFBIG) in said:  # PID 1 gets the error alone
            return f"it would be larger than {self._most >> 20} MiB"
        lines = said.split("\n")
        words = [line.strip() for line in lines if line.strip()][-1:] or [f"status {status}"]
        return "".join(c if c.isprintable() else "?" for c in words[0][:300])

    def close(self) -> None:
        """End it and forget the image. May be called twice."""
        self._child.close()
        for fd in (self._fd, self._log):
            if fd >= 0:
                os.close(fd)
        self._fd = self._log = -1


def pack(source: str, directory: str, *, uid: int, most: int) -> Packing:
    """Start packing the directory `source` into a nameless file on the disk of `directory`, as `uid`.

    It gets at most `most` bytes, and never all of the disk. The process must have one thread only. Raises
    `HostError`; then nothing is left.
    """
    program = find_program()
    log_fd = os.memfd_create("mkfs.erofs", os.MFD_CLOEXEC)
    fd = -1
    try:
        fd = nameless.create(directory)
        os.fchown(fd, uid, uid)
        space = os.fstatvfs(fd)
        free = space.f_bavail * space.f_frsize
        most = min(most, free - free // _FREE_PART)
        child = jail.start(
            [program, "--quiet", f"/proc/self/fd/{fd}", _SOURCE],
            describe_jail(program, source, fd, uid=uid, log_fd=log_fd, most=most),
        )
        return Packing(child, fd, log_fd, source, most)
    except BaseException as error:
        for number in (fd, log_fd):
            if number >= 0:
                os.close(number)
        if isinstance(error, OSError):
            raise HostError(f"cannot make an image in {directory}: {error.strerror}", code="pack") from error
        raise


def describe_jail(program: str, source: str, image_fd: int, *, uid: int, log_fd: int, most: int) -> jail.Jail:
    """The jail of mkfs.erofs, whose image may have `most` bytes."""
    libraries, links = jail.library_view()
    return jail.Jail(
        name=_PROGRAM,
        uid=uid,
        gid=uid,
        log_fd=log_fd,
        calls=allowlists.MKFS_EROFS,
        keep_fds=(image_fd,),
        capabilities=_CAPABILITIES,
        user_namespace=True,
        binds=(
            *libraries,
            jail.JailBind(source=program, target=program),
            jail.JailBind(source=source, target=_SOURCE),
        ),
        links=links,
        devices=("null", "urandom"),
        proc=("self/fd",),  # where the image's descriptor has a name
        limits=((resource.RLIMIT_FSIZE, most),),
        restricted=landlock.Rules(writable=("/dev/null", f"/proc/self/fd/{image_fd}")),
    )


def find_program() -> str:
    """mkfs.erofs; raises HostError `erofs-missing`."""
    path = programs.find(_PROGRAM, _PLACES)
    if not path:
        raise HostError(
            f"program not found: {_PROGRAM}",
            hint="apt-get install erofs-utils, or rootfs = virtiofs",
            code="erofs-missing",
        )
    return path


def is_whole(fd: int) -> bool:
    """Whether the file is an EROFS image and as long as that says: not what a full disk or a lost write left.

    Source: struct erofs_super_block (blkszbits, blocks).
    """
    block = os.pread(fd, 128, 1024)
    if len(block) < 128 or block[:4] != _MAGIC["erofs"][1]:
        return False
    return os.fstat(fd).st_size >= int.from_bytes(block[36:40], "little") << block[12]


def kind_of(fd: int, name: str) -> str:
    """`erofs` or `ext4`; raises `HostError` for anything else."""
    for kind, (offset, magic) in _MAGIC.items():
        if os.pread(fd, len(magic), offset) == magic:
            return kind
    raise HostError(f"not an EROFS or ext4 image: {name}", code="bad-image")
