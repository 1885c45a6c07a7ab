"""A child that shares our memory until it executes a program, and memory that is ours before it is touched.

fork(2) makes the kernel copy every page that either process touches next, a fault each. A process that will
never run again itself can lend its memory instead: clone(2) with CLONE_VM and CLONE_VFORK. The lender must
not return, for the child has used its stack; so the call is a few instructions that end the lender as soon as
the kernel lets it go on, without touching memory. Source: clone(2), madvise(2), System V ABI (AMD64).
"""

from __future__ import annotations

import ctypes
import os

from bufferzone.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CLONE_VM, _CLONE_VFORK, _CLONE_PARENT, _CLONE_PARENT_SETTID, _SIGCHLD = 0x100, 0x4000, 0x8000, 0x100000, 17
_FLAGS = _CLONE_VM | _CLONE_VFORK | _CLONE_PARENT | _CLONE_PARENT_SETTID | _SIGCHLD
_PROT_READ, _PROT_WRITE, _PROT_EXEC, _MAP_PRIVATE_ANONYMOUS, _PAGE = 1, 2, 4, 0x22, 4096
_MADV_POPULATE_WRITE = 23  # Linux 5.14
# clone(rdi = flags, rsi = stack, rdx = where the pid goes): the child returns, and an error; not the lender
_CODE = bytes.fromhex(
    "4d31d2"  # xor r10, r10
    "4d31c0"  # xor r8, r8
    "b838000000"  # mov eax, 56 (clone)
    "0f05"  # syscall
    "4885c0"  # test rax, rax
    "7f01"  # jg over the ret
    "c3"  # ret
    "31ff"  # xor edi, edi
    "b8e7000000"  # mov eax, 231 (exit_group)
    "0f05"  # syscall
    "f4"  # hlt
)


class Lender:
    """Made ahead of time by a process with one thread; raises OSError where that is impossible."""

    def __init__(self) -> None:
        if os.uname().machine != "x86_64":
            raise OSError(38, "this processor's clone(2) is not known")
        self._pid = ctypes.c_int(0)
        self._call = _make_callable(_CODE)

    def lend(self) -> int:
        """Become a child of our parent that runs on in our memory; its pid as our own PID namespace sees it.

        Whoever called is suspended until the child executes a program or ends, and then ends itself with
        status 0. Raises OSError in the caller, which then goes on as if nothing had been.
        """
        result = int(self._call(_FLAGS, None, ctypes.byref(self._pid)))
        if result < 0:
            raise OSError(-result, f"clone: {os.strerror(-result)}")
        return self._pid.value


def _make_callable(code: bytes) -> Any:
    mmap = ctypes.CDLL(None, use_errno=True).mmap
    mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_long] * 4]
    address = mmap(None, _PAGE, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    ctypes.memmove(address, code, len(code))
    libc.call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(_PAGE), _PROT_READ | _PROT_EXEC)
    # PYFUNCTYPE keeps the interpreter's lock: the lender never comes back to take it again
    return ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)(address)


def own_memory() -> None:
    """Have all our private writable memory for ourselves now, page by page, and not at the first touch each.

    A kernel that cannot leaves it to the faults.
    """
    with open("/proc/self/maps", "rb", buffering=0) as file:
        rows = [line.split() for line in (file.readall() or b"").splitlines()]
    for row in rows:
        if row[1] == b"rw-p":
            first, _, last = row[0].partition(b"-")
            start, length = int(first, 16), int(last, 16) - int(first, 16)
            try:
                libc.call("madvise", ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_POPULATE_WRITE)
            except OSError:
                pass  # EINVAL: before Linux 5.14
