"""Where the cgroups of a process are, and whether they stand still: v1's freezer, v2's `cgroup.freeze`.

Source: cgroups(7), Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import os


def places_of(cgroup: str, mountinfo: str) -> list[str]:
    """The directories of the cgroups that the text of a /proc/PID/cgroup names, as far as they are mounted.

    Source: cgroups(7), "/proc/pid/cgroup".
    """
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if kind and kind[0] in ("cgroup", "cgroup2"):
            mounts.append((kind[0], set(kind[-1].split(",")), fields[3], fields[4]))
    found = []
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for kind_, options, root, mount_point in mounts:
            v1 = bool(controllers) and kind_ == "cgroup" and options.issuperset(controllers.split(","))
            if (v1 or (not controllers and kind_ == "cgroup2")) and f"{path}/".startswith(root.rstrip("/")):
                found.append(mount_point + path.removeprefix(root.rstrip("/")))
                break
    return found


def is_frozen(directory: str) -> bool:
    """Whether what is in this cgroup stands still, or is about to; a root cannot."""
    state = _read(os.path.join(directory, "freezer.state")).strip()
    if state:
        return state != "THAWED"
    return "frozen 1" in _read(os.path.join(directory, "cgroup.events")).splitlines()


def frozen_place_of(pid: int) -> str:
    """The cgroup of a process that keeps it from running; empty: none, or the process is gone."""
    text, mountinfo = _read(f"/proc/{pid}/cgroup"), _read("/proc/self/mountinfo")
    return next((place for place in places_of(text, mountinfo) if is_frozen(place)), "")


def thaw(directory: str) -> None:
    """Let what is in it run on; one that is frozen above stays so. Raises OSError."""
    for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        path = os.path.join(directory, name)
        if os.path.exists(path):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)


def _read(path: str) -> str:
    """The text of a small kernel file; empty where it is not there."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
