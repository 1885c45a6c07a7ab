"""Who we are: root of the machine, root of a user namespace, or an ordinary user. Reads, changes nothing.

In a user namespace uid 0 is some ordinary user outside and its capabilities count for what that namespace
owns. Importing this is cheap: every verb asks. Source: user_namespaces(7).
"""

from __future__ import annotations

import os

#: the map of the initial user namespace
_ALL = (0, 0, 4294967295)
#: `nobody`, and what 16-bit interfaces take for "none": not for anybody's own use
_SPECIAL = (65534, 65535)


def id_ranges(kind: str = "uid") -> list[tuple[int, int, int]]:
    """The rows of our user namespace's `uid` or `gid` map: (first id inside, first id outside, count)."""
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        rows = [tuple(map(int, line.split())) for line in file]
    return [(row[0], row[1], row[2]) for row in rows]


def is_real_root() -> bool:
    """Whether we are root of the machine and not of a user namespace."""
    return os.geteuid() == 0 and id_ranges() == [_ALL]


def is_namespace_root() -> bool:
    """Whether we are root of a user namespace: an ordinary user who may mount and make namespaces."""
    return os.geteuid() == 0 and id_ranges() != [_ALL]


def outer_uid() -> int:
    """Our effective uid as the surrounding user namespace knows it: the user's, in a rootless one."""
    uid = os.geteuid()
    for inside, outside, count in id_ranges():
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def may_set_groups() -> bool:
    """Whether setgroups(2) is allowed in our user namespace; it is not where a user mapped only itself."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "allow"
    except OSError:
        return True  # a kernel before 3.19


def spare_ids() -> range:
    """Ids of a user namespace that helpers may have, each both a uid and a gid there; highest first.

    The upper half of the largest range: ids of files in images are low. Empty where only few are mapped.
    """
    best = range(0)
    for uid_start, _, uid_count in id_ranges("uid"):
        for gid_start, _, gid_count in id_ranges("gid"):
            low = max(uid_start, gid_start, 1)
            high = min(uid_start + uid_count, gid_start + gid_count)
            if low <= _SPECIAL[0] and high > _SPECIAL[0] and high <= _SPECIAL[1] + 64:
                high = _SPECIAL[0]  # the usual 65536 subordinate ids end just above
            half = range(high - 1, low + (high - low) // 2 - 1, -1)
            best = max(best, half, key=len)
    return best
