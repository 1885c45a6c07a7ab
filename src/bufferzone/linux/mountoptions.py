"""Mount options of config.json as flags: pure, no system calls.

Source: runtime-spec config-linux.md "mount options", runc libcontainer/specconv/spec_linux.go; unknown
options become the data of the file system, as with runc.
"""

from __future__ import annotations

from bufferzone.linux import mount as lm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_DIRSYNC, MS_LAZYTIME = lm.MS_DIRSYNC, lm.MS_LAZYTIME

#: option -> (flag of mount(2), whether it clears the flag)
FLAGS = {
    "async": (lm.MS_SYNCHRONOUS, True),
    "atime": (lm.MS_NOATIME, True),
    "bind": (lm.MS_BIND, False),
    "defaults": (0, False),
    "dev": (lm.MS_NODEV, True),
    "diratime": (lm.MS_NODIRATIME, True),
    "dirsync": (lm.MS_DIRSYNC, False),
    "exec": (lm.MS_NOEXEC, True),
    "iversion": (lm.MS_I_VERSION, False),
    "lazytime": (lm.MS_LAZYTIME, False),
    "loud": (lm.MS_SILENT, True),
    "mand": (lm.MS_MANDLOCK, False),
    "noatime": (lm.MS_NOATIME, False),
    "nodev": (lm.MS_NODEV, False),
    "nodiratime": (lm.MS_NODIRATIME, False),
    "noexec": (lm.MS_NOEXEC, False),
    "noiversion": (lm.MS_I_VERSION, True),
    "nolazytime": (lm.MS_LAZYTIME, True),
    "nomand": (lm.MS_MANDLOCK, True),
    "norelatime": (lm.MS_RELATIME, True),
    "nostrictatime": (lm.MS_STRICTATIME, True),
    "nosuid": (lm.MS_NOSUID, False),
    "nosymfollow": (lm.MS_NOSYMFOLLOW, False),
    "rbind": (lm.MS_BIND | lm.MS_REC, False),
    "relatime": (lm.MS_RELATIME, False),
    "remount": (lm.MS_REMOUNT, False),
    "ro": (lm.MS_RDONLY, False),
    "rw": (lm.MS_RDONLY, True),
    "silent": (lm.MS_SILENT, False),
    "strictatime": (lm.MS_STRICTATIME, False),
    "suid": (lm.MS_NOSUID, True),
    "symfollow": (lm.MS_NOSYMFOLLOW, True),
    "sync": (lm.MS_SYNCHRONOUS, False),
}

PROPAGATION = {
    "private": lm.MS_PRIVATE,
    "shared": lm.MS_SHARED,
    "slave": lm.MS_SLAVE,
    "unbindable": lm.MS_UNBINDABLE,
    "rprivate": lm.MS_PRIVATE | lm.MS_REC,
    "rshared": lm.MS_SHARED | lm.MS_REC,
    "rslave": lm.MS_SLAVE | lm.MS_REC,
    "runbindable": lm.MS_UNBINDABLE | lm.MS_REC,
}

_ATTR_ATIME, _ATTR_NOATIME, _ATTR_STRICTATIME, _ATTR_NODIRATIME = 0x70, 0x10, 0x20, 0x80
_ATTR_NOSYMFOLLOW = 0x200000

#: per-mount flag of mount(2) -> attribute of mount_setattr(2)
_ATTRIBUTES = (
    (lm.MS_RDONLY, lm.MOUNT_ATTR_RDONLY),
    (lm.MS_NOSUID, lm.MOUNT_ATTR_NOSUID),
    (lm.MS_NODEV, lm.MOUNT_ATTR_NODEV),
    (lm.MS_NOEXEC, lm.MOUNT_ATTR_NOEXEC),
    (lm.MS_NODIRATIME, _ATTR_NODIRATIME),
    (lm.MS_NOSYMFOLLOW, _ATTR_NOSYMFOLLOW),
)
_ATIMES = ((lm.MS_RELATIME, 0), (lm.MS_NOATIME, _ATTR_NOATIME), (lm.MS_STRICTATIME, _ATTR_STRICTATIME))

#: recursive variant -> the option it applies to a whole tree
RECURSIVE = {
    "r" + name: name
    for name in [
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "symfollow",
        "nosymfollow",
    ]
}


class MountOptions:
    """One mount's options: flags set and cleared, the same for the whole tree, propagation in order,
    data, tmpcopyup.
    """

    __slots__ = ("clear", "copy_up", "data", "propagation", "set", "tree_clear", "tree_set")

    def __init__(self) -> None:
        self.set = self.clear = self.tree_set = self.tree_clear = 0
        self.propagation: list[int] = []
        self.data: list[str] = []
        self.copy_up = False

    def attributes(self) -> tuple[int, int]:
        """(add, clear) for mount_setattr(2) of the mount itself."""
        return _attributes(self.set, self.clear)

    def tree_attributes(self) -> tuple[int, int]:
        """(add, clear) for mount_setattr(2) of the whole tree."""
        return _attributes(self.tree_set, self.tree_clear)


def parse(options: list[Any]) -> MountOptions:
    """Sort `options`; a later option wins over an earlier one it contradicts."""
    result = MountOptions()
    for option in options:
        if option in FLAGS:
            flag, clears = FLAGS[option]
            result.set, result.clear = _apply(result.set, result.clear, flag, clears)
        elif option in RECURSIVE:
            flag, clears = FLAGS[RECURSIVE[option]]
            result.tree_set, result.tree_clear = _apply(result.tree_set, result.tree_clear, flag, clears)
        elif option in PROPAGATION:
            result.propagation.append(PROPAGATION[option])
        elif option == "tmpcopyup":
            result.copy_up = True
        elif option:
            result.data.append(str(option))
    return result


def _apply(set_: int, clear: int, flag: int, clears: bool) -> tuple[int, int]:
    return (set_ & ~flag, clear | flag) if clears else (set_ | flag, clear & ~flag)


def _attributes(set_: int, clear: int) -> tuple[int, int]:
    """Flags of mount(2) as (attributes to add, attributes to clear); the access time is one field of its
    own.
    """
    add = drop = 0
    for flag, attribute in _ATTRIBUTES:
        add |= attribute if set_ & flag else 0
        drop |= attribute if clear & flag else 0
    for flag, attribute in _ATIMES:
        if set_ & flag:
            add, drop = add & ~_ATTR_ATIME | attribute, drop | _ATTR_ATIME
        elif clear & flag and attribute and not add & _ATTR_ATIME:
            drop |= _ATTR_ATIME  # back to relatime, whose value is 0
    return add, drop
