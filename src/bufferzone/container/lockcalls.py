"""What a process that calls flock(2) or fcntl(2) wants, read from its registers and memory.

Source: fcntl(2), flock(2), proc(5) "/proc/pid/mem", "/proc/pid/syscall".
"""

from __future__ import annotations

import errno
import os

from bufferzone.linux import filelock, usernotif
from bufferzone.linux.filelock import END
from bufferzone.wire.locks import EXCLUSIVE, FLOCK, NONE, RANGE, SHARED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.linux.usernotif import Notification

#: of fcntl(2), those that are about locks
COMMANDS = (5, 6, 7, 12, 13, 14, 36, 37, 38, filelock.F_SETLEASE)  # 12 to 14: those of 32-bit programs
_LOCK_SHARED, _LOCK_EXCLUSIVE, _LOCK_NOW, _LOCK_UNLOCK = 1, 2, 4, 8
_FLOCK_MODES = {_LOCK_SHARED: SHARED, _LOCK_EXCLUSIVE: EXCLUSIVE, _LOCK_UNLOCK: NONE}
_MODES = {filelock.READ: SHARED, filelock.WRITE: EXCLUSIVE, filelock.UNLOCK: NONE}
TYPES = {NONE: filelock.UNLOCK, SHARED: filelock.READ, EXCLUSIVE: filelock.WRITE}


class Call:
    """One call for a lock: `kind`, `segment` (mode 0: give back), whether it `waits` or only asks (`test`).

    `of_file`: the lock belongs to the open file description, so that whoever has a copy of the descriptor
    can set it; else to the process. `fd` is such a copy, owned. `memory` is where a test's answer goes.
    """

    __slots__ = (
        "fd",
        "kind",
        "listener",
        "memory",
        "notification",
        "of_file",
        "pid",
        "segment",
        "test",
        "waits",
    )

    def __init__(self, listener: int, notification: Notification, pid: int, fd: int) -> None:
        self.listener, self.notification, self.pid, self.fd = listener, notification, pid, fd
        self.kind, self.segment, self.memory = FLOCK, (0, END, NONE), 0
        self.waits = self.test = False
        self.of_file = True

    def close(self) -> None:
        """Give up the copy of the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def lock_here(self) -> None:
        """Set the lock in this kernel, for a lock `of_file`; raises BlockingIOError, OSError."""
        start, end, mode = self.segment
        if self.kind == RANGE:
            filelock.set_range(self.fd, TYPES[mode], start, end)
        else:
            import fcntl

            fcntl.flock(self.fd, {NONE: 8, SHARED: 1, EXCLUSIVE: 2}[mode] | _LOCK_NOW)

    def answer_test(self, mode: int, start: int, end: int) -> None:
        """Tell the process what is in its way: a lock of nobody that it could know."""
        _poke(self.notification.thread, self.memory, filelock.pack(TYPES[mode], start, end))


def target_of(notification: Notification) -> tuple[int, int]:
    """(process, copy of the descriptor that the call is about). Raises OSError: EBADF and what /proc says."""
    pid = _process_of(notification.thread)
    number = notification.arguments[0] & 0xFFFFFFFF
    if number > 0x7FFFFFFF:
        raise OSError(errno.EBADF, "fcntl")
    return pid, usernotif.descriptor_of(pid, number)


def understand(call: Call) -> bool:
    """Fill in what the call says; False where it is this kernel's alone. Raises OSError with the errno that
    the kernel would give.
    """
    notification = call.notification
    if notification.arch != usernotif.X86_64:
        raise OSError(errno.ENOLCK, "a 32-bit program's lock on a volume")
    if notification.number == usernotif.CALLS[usernotif.X86_64][0]:
        operation = notification.arguments[1] & 0xFFFFFFFF
        mode = _FLOCK_MODES.get(operation & ~_LOCK_NOW)
        if mode is None:
            raise OSError(errno.EINVAL, "flock")
        call.segment, call.waits = (0, END, mode), not operation & _LOCK_NOW
        return True
    command = notification.arguments[1] & 0xFFFFFFFF
    if command == filelock.F_SETLEASE:
        if notification.arguments[2] & 0xFFFFFFFF == filelock.LEASE_UNLOCK:
            return False
        raise OSError(errno.EINVAL, "nobody would hear of the other side's open(2)")
    _understand_range(call, command)
    return True


def _understand_range(call: Call, command: int) -> None:
    call.kind, call.memory = RANGE, call.notification.arguments[2]
    call.of_file = command in (filelock.F_OFD_GETLK, filelock.F_OFD_SETLK, filelock.F_OFD_SETLKW)
    call.waits = command in (filelock.F_SETLKW, filelock.F_OFD_SETLKW)
    call.test = command in (filelock.F_GETLK, filelock.F_OFD_GETLK)
    kind, whence, start, length = filelock.unpack(_peek(call.notification.thread, call.memory))
    if kind not in _MODES or whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
        raise OSError(errno.EINVAL, "fcntl")
    if whence == os.SEEK_CUR:
        start += os.lseek(call.fd, 0, os.SEEK_CUR)
    elif whence == os.SEEK_END:
        start += os.fstat(call.fd).st_size
    end = start + length if length > 0 else start if length else END
    start += min(length, 0)
    if start < 0 or not start < end <= END:
        raise OSError(errno.EINVAL, "fcntl")
    _check_access(call.fd, _MODES[kind], test=call.test)
    call.segment = (start, end, _MODES[kind])


def _check_access(fd: int, mode: int, *, test: bool) -> None:
    """A shared lock needs a descriptor that can be read, an exclusive one that can be written."""
    import fcntl

    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    forbidden = {SHARED: os.O_WRONLY, EXCLUSIVE: os.O_RDONLY}.get(mode)
    if access == forbidden and not test:
        raise OSError(errno.EBADF, "fcntl")


def may_be_inside(thread: int, number: int) -> bool:
    """Whether a thread may be in system call `number` still: it is, or runs, so that nobody can say."""
    try:
        with open(f"/proc/{thread}/syscall", "rb", buffering=0) as file:
            said = (file.read(256) or b"").split()
    except OSError:
        return False  # it has ended
    return not said or said[0] in (b"running", str(number).encode())


def _process_of(thread: int) -> int:
    with open(f"/proc/{thread}/status", "rb", buffering=0) as file:
        for line in (file.read(4096) or b"").split(b"\n"):
            if line.startswith(b"Tgid:"):
                return int(line[5:])
    raise OSError(errno.ESRCH, "no such thread")


def _peek(thread: int, address: int) -> bytes:
    fd = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = os.pread(fd, filelock.FLOCK_SIZE, address)
    except (OSError, OverflowError) as error:
        raise OSError(errno.EFAULT, "fcntl") from error
    finally:
        os.close(fd)
    if len(raw) < filelock.FLOCK_SIZE:
        raise OSError(errno.EFAULT, "fcntl")
    return raw


def _poke(thread: int, address: int, raw: bytes) -> None:
    fd = os.open(f"/proc/{thread}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, raw, address)
    finally:
        os.close(fd)
