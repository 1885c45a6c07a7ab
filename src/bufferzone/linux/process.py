"""What a process may change about itself: namespaces, capabilities, prctl, seccomp, keyring, death signal."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from bufferzone.linux.capability_names import CAPABILITIES
from bufferzone.linux.libc import call, encode, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWTIME = 0x10000000, 0x20000000, 0x40000000, 0x80
CLONE_FS = 0x200  # of unshare(2): root and working directory

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NAME = 1, 4, 8, 15
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 23, 24, 38, 36
_PR_SET_SECUREBITS = 28
SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP = 1 << 0, 1 << 2
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
_CAPGET, _CAPSET, _SECCOMP, _KEYCTL, _CLOSE_RANGE = 125, 126, 317, 250, 436
_INIT_MODULE, _FINIT_MODULE = 175, 313
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 2  # what is refused is in the kernel's log


def unshare(flags: int) -> None:
    """unshare(2)."""
    call("unshare", flags)


def setns(fd: int, kind: int = 0) -> None:
    """setns(2)."""
    call("setns", fd, kind)


def _prctl(option: int, second: int = 0, third: int = 0) -> int:
    unused = ctypes.c_ulong(0)
    return call("prctl", option, ctypes.c_ulong(second), ctypes.c_ulong(third), unused, unused)


def die_with_parent(signal: int = 9) -> None:
    """PR_SET_PDEATHSIG: `signal` when the parent thread ends. Cleared by a change of credentials, so set it
    last.
    """
    _prctl(_PR_SET_PDEATHSIG, signal)


def become_subreaper(on: bool = True) -> None:
    """PR_SET_CHILD_SUBREAPER: orphaned descendants become our children, or no longer do."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def set_name(name: str) -> None:
    """PR_SET_NAME: the comm of this thread, cut to 15 bytes."""
    raw = name.encode()[:15]
    call("prctl", _PR_SET_NAME, ctypes.c_char_p(raw), 0, 0, 0)


def set_no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS, for good."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_dumpable(dumpable: bool) -> None:
    """PR_SET_DUMPABLE: whether /proc/self belongs to us and others may trace us."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_securebits(bits: int) -> None:
    """PR_SET_SECUREBITS: how uid 0 and changes of uid affect capabilities; see capabilities(7)."""
    _prctl(_PR_SET_SECUREBITS, bits)


def keep_capabilities(keep: bool) -> None:
    """PR_SET_KEEPCAPS: keep the permitted set across a change of uid."""
    _prctl(_PR_SET_KEEPCAPS, int(keep))


def drop_bounding(keep: int) -> None:
    """Drop every capability from the bounding set that is not in the mask `keep`."""
    for number in range(64):
        if keep >> number & 1:
            continue
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # beyond the kernel's last capability
            if _is_bounding(number):
                raise  # else it was not there, and there is no right to drop it once more


def _is_bounding(number: int) -> bool:
    """PR_CAPBSET_READ; no kernel has all 64."""
    try:
        return bool(_prctl(_PR_CAPBSET_READ, number))
    except OSError:
        return False


def set_capabilities(*, effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) on this thread, with masks of 64 bits."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    syscall(_CAPSET, "capset", header, struct.pack("=6I", *low, *high))


def hold_only(*names: str) -> None:
    """This thread, which carries what strangers wrote, holds these of what it held and no more, for good."""
    mask = capability_mask(list(names)) & permitted_capabilities()
    set_capabilities(effective=mask, permitted=mask, inheritable=0)


def permitted_capabilities() -> int:
    """The permitted set of this thread, a mask of 64 bits: capget(2)."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    syscall(_CAPGET, "capget", header, data)
    low, high = (struct.unpack_from("=I", data, offset)[0] for offset in (4, 16))
    return int(low | high << 32)


def set_ambient(mask: int) -> None:
    """Make the ambient set exactly `mask` (each must be permitted and inheritable)."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        if mask >> number & 1:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def capability_mask(names: list[str]) -> int:
    """Names like CAP_CHOWN as a bit mask; raises `ValueError` naming an unknown one."""
    mask = 0
    for name in names:
        if name not in CAPABILITIES:
            raise ValueError(name)
        mask |= 1 << CAPABILITIES.index(name)
    return mask


def load_seccomp(program: bytes, flags: int = 0) -> None:
    """seccomp(SECCOMP_SET_MODE_FILTER): `program` is an array of struct sock_filter (8 bytes each)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    syscall(_SECCOMP, "seccomp", _SECCOMP_SET_MODE_FILTER, flags, header)


class Execution:
    """An execve(2) of `argv` with an empty environment, made ready at addresses that nobody can guess.

    A filter that lets this one through lets no other: the addresses are 46 random bits, are told to nobody,
    and are gone with the memory that the call replaces. `addresses` are its three arguments.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        words = [encode(word) + b"\0" for word in argv]
        pointers = 8 * (len(words) + 2)  # argv and its end, an environment of nothing but its end
        secret = int.from_bytes(os.urandom(8), "little")
        offset = secret & 0xFFF
        self._base = _map_at(_SECRET_FROM | secret & _SECRET_BITS, offset + pointers + sum(map(len, words)))
        table = self._base + offset
        texts, at = [], table + pointers
        for word in words:
            texts.append(at)
            at += len(word)
        data = struct.pack(f"={len(words) + 2}Q", *texts, 0, 0) + b"".join(words)
        ctypes.memmove(table, data, len(data))
        self.addresses = (texts[0], table, table + pointers - 8)

    def now(self) -> NoReturn:
        """Become the program; raises OSError."""
        call("execve", *(ctypes.c_void_p(address) for address in self.addresses))
        raise OSError(0, "execve returned")


# addresses of user space above what a small program maps, below the stack and libraries of most
_SECRET_FROM, _SECRET_BITS = 0x1000_0000_0000, 0x3FFF_FFFF_F000
_MAP_PRIVATE_ANONYMOUS_NOREPLACE = 0x100022


def _map_at(address: int, size: int) -> int:
    """Memory at `address`; raises OSError where something is already."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    found = function(address, size, 3, _MAP_PRIVATE_ANONYMOUS_NOREPLACE, -1, 0)
    if found != address:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap: {os.strerror(number)}")
    return address


def new_session_keyring(name: str) -> None:
    """KEYCTL_JOIN_SESSION_KEYRING: a session keyring of our own."""
    syscall(_KEYCTL, "keyctl", 1, name.encode())


def load_module(fd: int, parameters: str = "") -> None:
    """finit_module(2)."""
    syscall(_FINIT_MODULE, "finit_module", fd, parameters.encode(), 0)


def load_module_bytes(data: bytes) -> None:
    """init_module(2): the module itself, for one that is not a file as it is."""
    syscall(_INIT_MODULE, "init_module", data, ctypes.c_ulong(len(data)), b"")


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2): close every descriptor from `first` to `last`."""
    syscall(_CLOSE_RANGE, "close_range", first, last, 0)


def close_all_but(*fds: int) -> None:
    """Close every descriptor from 3 up that is none of `fds`."""
    first = 3
    for fd in sorted(set(fds)):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first)


def reboot(command: int) -> None:
    """reboot(2), through glibc. 0x4321FEDC powers off, 0x01234567 restarts."""
    call("reboot", ctypes.c_int(command))
