"""Landlock: what a process may never do again, whatever its credentials are. Where the kernel has it.

Source: landlock(7), include/uapi/linux/landlock.h. Versions of the interface: 1 files, 2 refer, 3 truncate,
4 TCP, 6 signals and abstract sockets.
"""

from __future__ import annotations

import errno
import os
import struct

from bufferzone.linux.libc import syscall
from bufferzone.record import Record

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH, _NET_PORT = 1, 2
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
#: REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM
_CHANGE, _MAKE_SOCKET = 0x1FF0, 1 << 9
_TAKE, _REACH = 0b01, 0b10  # bind and connect of TCP
_SCOPES = 0b11  # abstract UNIX sockets and signals of others


class Rules(Record):
    """No file is written but at or below `writable`, none is made (but UNIX sockets in the directories
    `sockets`, which have to be writable too) or removed; below the directories `trees` everything may be
    done. None as `writable`: files are not looked at.
    `ports` are those of TCP that may be taken, and any may be reached; None: none of both.
    Nobody outside is signalled or found by an abstract name.
    """

    writable: tuple[str, ...] | None = ()
    sockets: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    ports: tuple[int, ...] | None = None


def version() -> int:
    """Of the interface; 0 where the kernel has none, or it is switched off."""
    try:
        return syscall(_CREATE, "landlock_create_ruleset", None, 0, _VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def restrict(rules: Rules) -> int:
    """As far as this kernel knows how; what is open stays as it is. For this thread and what it becomes, for
    good; needs no_new_privs. Returns the version. Raises OSError.
    """
    found = version()
    files, net, scopes = handled(rules, found)
    if not (files or net or scopes):
        return found
    attributes = struct.pack("=QQQ", files, net, scopes)
    attributes = attributes[: 8 if found < 4 else 16 if found < 6 else 24]
    ruleset = syscall(_CREATE, "landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        if files:
            _allow_files(ruleset, rules, files)
        for port in rules.ports or ():
            if net:
                rule = struct.pack("=QQ", _TAKE, port)
                syscall(_ADD, "landlock_add_rule", ruleset, _NET_PORT, rule, 0)
        syscall(_RESTRICT, "landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return found


def handled(rules: Rules, version: int) -> tuple[int, int, int]:
    """What is denied where no rule allows it, as the kernel's masks: rights of files, of TCP, and scopes."""
    files = _WRITE_FILE | _CHANGE | (_REFER if version > 1 else 0) | (_TRUNCATE if version > 2 else 0)
    # the first version lets nobody rename from one directory to another
    if not version or rules.writable is None or (rules.trees and version < 2):
        files = 0
    net = _TAKE | _REACH if rules.ports is None else _TAKE
    return files, net if version > 3 else 0, _SCOPES if version > 5 else 0


def _allow_files(ruleset: int, rules: Rules, files: int) -> None:
    kinds = [(path, _WRITE_FILE | _TRUNCATE) for path in rules.writable or ()]
    kinds += [(path, _WRITE_FILE | _TRUNCATE | _MAKE_SOCKET) for path in rules.sockets]
    kinds += [(path, files) for path in rules.trees]
    for path, allowed in kinds:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", files & allowed, fd)
            syscall(_ADD, "landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0, path=path)
        finally:
            os.close(fd)
