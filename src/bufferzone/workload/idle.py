"""Process 1 of a sandbox that has no command of its own: it waits, and what it inherits is reaped.

A program of its own since an image need not hold one that waits: x86-64 machine code in the smallest of ELF
files, 168 bytes. Elsewhere it is catatonit. Source: elf(5), syscalls(2), sigaction(2).
"""

from __future__ import annotations

import os
import struct

from bufferzone.errors import HostError

_ADDRESS = 0x400000
_HEADERS = 64 + 56
#: rt_sigaction(SIGCHLD, &{SIG_IGN}, NULL, 8): the kernel reaps children; then pause() for ever
_CODE = bytes.fromhex(
    "b80d000000"  # mov eax, 13
    "bf11000000"  # mov edi, 17
    "488d3513000000"  # lea rsi, [rip + 19]: the structure behind the code
    "31d2"  # xor edx, edx
    "41ba08000000"  # mov r10d, 8
    "0f05"  # syscall
    "b822000000"  # mov eax, 34
    "0f05"  # syscall
    "ebf7"  # back to the mov
)
_SIGACTION = struct.pack("<4Q", 1, 0, 0, 0)
_X86_64 = 62


def program() -> bytes:
    """The ELF file."""
    body = _CODE + _SIGACTION
    size = _HEADERS + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, _X86_64, 1, _ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    return ident + header + segment + body


def write(directory: str) -> str:
    """Put it into `directory`; its path. Raises `HostError`."""
    path = os.path.join(directory, "idle")
    if os.uname().machine != "x86_64":
        raise HostError("a sandbox without a command needs an x86-64 machine", code="no-idle")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
        with open(fd, "wb") as file:
            file.write(program())
            os.fchmod(fd, 0o755)  # whatever our umask
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
    return path
