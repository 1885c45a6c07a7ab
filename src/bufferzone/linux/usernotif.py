"""System calls that another process is asked about: seccomp's user notification.

`listen` installs a filter that hands calls about file locks to whoever holds the listener; everything else
passes. Source: seccomp_unotify(2), seccomp(2), Linux include/uapi/linux/{seccomp,audit,bpf_common}.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from bufferzone.linux.libc import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 1 << 3
_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE = 1
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARCH_AT, _SECOND_AT = 0, 4, 24  # in struct seccomp_data; low half of the second argument
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
X86_64, I386 = 0xC000003E, 0x40000003
#: architecture -> flock(2), and every number of fcntl(2)
CALLS = {X86_64: (73, (72,)), I386: (143, (55, 221))}


class Notification:
    """One call that waits for an answer: its id, the thread, and what struct seccomp_data says."""

    __slots__ = ("arch", "arguments", "id", "number", "thread")

    def __init__(self, raw: bytes) -> None:
        self.id, self.thread, _, self.number, self.arch, _, *arguments = struct.unpack("=QIIiIQ6Q", raw)
        self.arguments: Sequence[int] = arguments


def program(commands: Sequence[int]) -> bytes:
    """The filter: flock(2), and fcntl(2) with one of `commands`, are asked about; all else is allowed."""
    rows: list[tuple[int, int, str, str]] = [(_LOAD, _ARCH_AT, "", "")]
    rows += [(_JUMP_EQUAL, arch, f"arch{arch}", "") for arch in CALLS]
    rows += [(_RETURN, _ALLOW, "", "")]
    labels: dict[str, int] = {}
    for arch, (flock, fcntls) in CALLS.items():
        labels[f"arch{arch}"] = len(rows)
        rows += [(_LOAD, _NUMBER_AT, "", ""), (_JUMP_EQUAL, flock, "notify", "")]
        rows += [(_JUMP_EQUAL, number, "command", "") for number in fcntls]
        rows += [(_RETURN, _ALLOW, "", "")]
    labels["command"] = len(rows)
    rows += [(_LOAD, _SECOND_AT, "", "")]
    rows += [(_JUMP_EQUAL, command, "notify", "") for command in commands]
    rows += [(_RETURN, _ALLOW, "", "")]
    labels["notify"] = len(rows)
    rows += [(_RETURN, _NOTIFY, "", "")]
    return b"".join(
        struct.pack("=HBBI", code, labels[true] - at - 1 if true else 0, 0, value)
        for at, (code, value, true, _) in enumerate(rows)
    )


def listen(commands: Sequence[int]) -> int:
    """Put the filter on this process and what it becomes; the descriptor that hears of its calls.

    Needs CAP_SYS_ADMIN in the user namespace, or no_new_privs. Raises OSError: EBUSY where there is one.
    """
    code = program(commands)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    return syscall(_SECCOMP, "seccomp", _SET_MODE_FILTER, _NEW_LISTENER, header)


def receive(listener: int) -> Notification | None:
    """The next call; None when the caller has given up meanwhile. Blocks unless poll(2) said otherwise."""
    try:
        return Notification(fcntl.ioctl(listener, _RECEIVE, bytes(80)))
    except FileNotFoundError:
        return None


def go_on(listener: int, notification: Notification) -> bool:
    """Let the kernel make the call after all. False: the caller has given up."""
    return _send(listener, struct.pack("=QqiI", notification.id, 0, 0, _CONTINUE))


def answer(listener: int, notification: Notification, number: int = 0) -> bool:
    """The call returns 0, or fails with errno `number`. False: the caller has given up."""
    return _send(listener, struct.pack("=QqiI", notification.id, 0, -number, 0))


def waits(listener: int, notification: Notification) -> bool:
    """Whether the caller still waits: what was found by its pid is then its own."""
    try:
        fcntl.ioctl(listener, _IS_VALID, struct.pack("=Q", notification.id))
    except OSError:
        return False
    return True


def _send(listener: int, raw: bytes) -> bool:
    try:
        fcntl.ioctl(listener, _SEND, raw)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINPROGRESS):
            raise
        return False
    return True


def descriptor_of(pid: int, number: int) -> int:
    """A copy of descriptor `number` of process `pid`: the same open file description. Raises OSError."""
    pidfd = syscall(_PIDFD_OPEN, "pidfd_open", pid, 0)
    try:
        return syscall(_PIDFD_GETFD, "pidfd_getfd", pidfd, number, 0)
    finally:
        os.close(pidfd)
