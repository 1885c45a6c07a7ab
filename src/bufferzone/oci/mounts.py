"""What an entry of config.json's mounts says: is it a bind, is it read-only, is it a whole tree.

As runc has it (1.1.5, tried; specconv parseMountOptions): with the option bind or rbind the type means
nothing, the last of ro and rw counts, and rro counts whatever else is said. A type bind without either option
is a bind here, of the whole tree; runc and crun fail at it. Behind the wall `linux/mountoptions.py` says the
same in flags.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: the guest's kernel makes these out of nothing, whatever their source says
_OF_THE_KERNEL = frozenset(
    "bpf binfmt_misc cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue nsfs"
    " proc pstore ramfs rpc_pipefs securityfs selinuxfs sysfs tmpfs tracefs".split()
)


def is_bind(entry: Mapping[str, Any]) -> bool:
    """Whether the mount shows something that is there already. A remount shows nothing: it changes what is
    mounted at its destination.
    """
    options = options_of(entry)
    if "remount" in options:
        return False
    return entry.get("type") == "bind" or "bind" in options or "rbind" in options


def is_made_on_the_host(entry: Mapping[str, Any]) -> bool:
    """Whether it is a file system of host paths: an overlay, a disk, a server. Any type is one that neither
    binds nor is of the guest's own.
    """
    kind = str(entry.get("type") or "none")
    return (
        kind not in _OF_THE_KERNEL
        and kind != "none"
        and "remount" not in options_of(entry)
        and not is_bind(entry)
    )


def is_recursive(entry: Mapping[str, Any]) -> bool:
    """Whether a bind takes along what is mounted below its source."""
    options = options_of(entry)
    return "rbind" in options or "bind" not in options


def is_read_only(entry: Mapping[str, Any]) -> bool:
    """Whether nothing may be written through the mount. What is said of the whole tree is applied last."""
    return (_last(entry, "rro", "rrw") or _last(entry, "ro", "rw")) in ("rro", "ro")


def is_read_only_below(entry: Mapping[str, Any]) -> bool:
    """Whether that holds for whatever is mounted below it, too."""
    return _last(entry, "rro", "rrw") == "rro"


def _last(entry: Mapping[str, Any], *contradicting: str) -> str:
    """The last of these options, which wins; empty without any."""
    return next((option for option in reversed(options_of(entry)) if option in contradicting), "")


def options_of(entry: Mapping[str, Any]) -> Sequence[str]:
    """The entry's options; absent and null are none."""
    return entry.get("options") or ()
