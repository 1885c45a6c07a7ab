"""Landlock: what a process may never do again, whatever its credentials are. Where the kernel has it.

Source: landlock(7), include/uapi/linux/landlock.h. Versions of the interface: 1 files, 2 refer, 3 truncate,
4 TCP, 6 signals and abstract sockets.
"""

from __future__ import annotations

import errno
import os
import struct

from bufferzone.linux.libc import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
#: REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM
_CHANGE, _MAKE_SOCKET = 0x1FF0, 1 << 9
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract UNIX sockets and signals of others


def version() -> int:
    """Of the interface; 0 where the kernel has none, or it is switched off."""
    try:
        return syscall(_CREATE, "landlock_create_ruleset", None, 0, _VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def restrict(writable: Sequence[str], sockets: Sequence[str] = ()) -> int:
    """No file is written but at or below `writable`, none is made (but UNIX sockets in the directories
    `sockets`, which have to be writable too) or removed, no TCP port taken or reached,
    nobody outside signalled or found by an abstract name. What is open stays as it is. For this thread and
    what it becomes, for good; needs no_new_privs. Returns the version. Raises OSError.
    """
    found = version()
    if not found:
        return 0
    files = _WRITE_FILE | _CHANGE | (_REFER if found > 1 else 0) | (_TRUNCATE if found > 2 else 0)
    attributes = struct.pack("=QQQ", files, _TCP if found > 3 else 0, _SCOPES if found > 5 else 0)
    attributes = attributes[: 8 if found < 4 else 16 if found < 6 else 24]
    ruleset = syscall(_CREATE, "landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for path in writable:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                allowed = _WRITE_FILE | _TRUNCATE | (_MAKE_SOCKET if path in sockets else 0)
                rule = struct.pack("=Qi", files & allowed, fd)
                syscall(_ADD, "landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0, path=path)
            finally:
                os.close(fd)
        syscall(_RESTRICT, "landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return found
