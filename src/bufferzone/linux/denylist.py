"""A seccomp filter for helpers that start on our side: a fixed list of system calls they never need is
refused.

It comes before the helper's own filter and covers every thread, the ones also that the helper starts before
its own filter (C virtiofsd has one). Refuses to be an allow-list: the helper's authors know what theirs
needs, we do not.
"""

from __future__ import annotations

import struct

#: refused with EPERM: x86-64 numbers, from linux/arch/x86/entry/syscalls/syscall_64.tbl
DENIED = {
    "ptrace": 101,
    "personality": 135,
    "pivot_root": 155,
    "acct": 163,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "reboot": 169,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
# clone(2) and unshare(2) with any of these flags are refused (virtiofsd's threads unshare CLONE_FS);
# clone3(2) hides its flags in memory, so it does not exist here, and glibc falls back
_NEW_NAMESPACES = 0x7E020000
_CONFINEMENT = ("mount", "umount2", "pivot_root")
_CLONE, _UNSHARE, _CLONE3 = 56, 272, 435
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026


def program(*, confines_itself: bool = False) -> bytes:
    """The filter as an array of struct sock_filter; see seccomp(2).

    `confines_itself`: without what a helper needs that leaves for namespaces and a root of its own.
    """
    own = _CONFINEMENT if confines_itself else ()
    numbers = sorted(number for name, number in DENIED.items() if name not in own)
    namespaces = 0 if confines_itself else _NEW_NAMESPACES
    end = len(numbers)  # instructions between the first comparison and what follows the list
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),  # a 32-bit system call: other numbers, so no list would hold
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, end + 7, 0, _X32_BIT),
    ]
    lines += [(_EQUAL, end - index + 7, 0, number) for index, number in enumerate(numbers)]
    lines += [
        (_EQUAL, 5, 0, _CLONE3),
        (_EQUAL, 1, 0, _CLONE),
        (_EQUAL, 0, 2, _UNSHARE),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 3, 0, namespaces),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ENOSYS),
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
