"""Host cgroups: join the one the caller chose, and remove it again. `sandbox/limits.py` sets limits.

Works on cgroup v1, v2 and the hybrid of both by writing files; a systemd cgroup is made at the path
systemd would give it. Source: cgroups(7), runtime-spec config-linux "Control groups".
"""

from __future__ import annotations

import errno
import os
import time

from bufferzone.errors import HostError, SpecError
from bufferzone.linux import freezer
from bufferzone.oci.cgroup_path import systemd_form, unit_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: how long a process that has ended its work may take to leave its cgroup
_LEAVE_S = 2.0
#: controllers of the unified hierarchy that a container's cgroup needs from those above it
_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
#: directories that this process made or found empty, and may limit
_made: set[str] = set()


def hierarchies(mountinfo: str) -> list[str]:
    """Mount points of every cgroup hierarchy in the text of /proc/self/mountinfo that can hold a
    container.
    """
    found, unified = [], []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if kind and kind[0] == "cgroup":
            found.append(fields[4])
        elif kind and kind[0] == "cgroup2":
            unified.append(fields[4])
    return list(dict.fromkeys(found + unified))


def relative_path(cgroups_path: str, container_id: str) -> str:
    """linux.cgroupsPath as a path below each hierarchy, without a leading slash; empty when none was asked.

    `slice:prefix:name` (systemd's form) becomes `slice/prefix-name.scope`.
    """
    if not cgroups_path:
        return ""
    if form := systemd_form(cgroups_path):
        slice_, prefix, name = form
        return os.path.join(_expand_slice(slice_ or "system.slice"), unit_name(prefix, name))
    normal = os.path.normpath("/" + cgroups_path).lstrip("/")
    if normal in ("", "."):
        raise SpecError(
            f"config.json: linux.cgroupsPath: {cgroups_path!r} is the root cgroup (container {container_id})"
        )
    return normal


def _expand_slice(slice_: str) -> str:
    """`a-b.slice` lives in `a.slice/a-b.slice` (systemd.slice(5))."""
    stem = slice_.removesuffix(".slice")
    if stem == "-" or not stem:
        return ""
    parts = stem.split("-")
    return "/".join("-".join(parts[: n + 1]) + ".slice" for n in range(len(parts)))


def places(relative: str) -> list[str]:
    """The directories of the cgroup `relative`, one for each hierarchy that has it."""
    found = [os.path.join(mount_point, relative) for mount_point in hierarchies(_mountinfo())]
    return [directory for directory in found if os.path.isdir(directory)]


def is_ours(directory: str) -> bool:
    """Whether `join` made it, or `claim` found it empty: the limits of any other are its maker's."""
    return directory in _made


def own(directories: Iterable[str]) -> None:
    """They were made for us, by systemd, so that they are ours to limit."""
    _made.update(directories)


def path_in_systemd(cgroup: str) -> str:
    """Of the text of a /proc/PID/cgroup, the path in the hierarchy that systemd keeps its units in, without
    a leading slash. Source: cgroups(7), "/proc/pid/cgroup".
    """
    rows = [line.split(":", 2) for line in cgroup.splitlines()]
    by_controllers = {controllers: path for _, controllers, path in rows}
    return by_controllers.get("name=systemd", by_controllers.get("", "/")).strip("/")


def claim(relative: str) -> int:
    """Before the first `join`: an empty cgroup that is there already becomes ours, to limit and to remove.

    Returns how many processes are in it; then it stays its maker's. Raises `HostError` `cgroup-frozen` where
    it, or one above it, is frozen: whoever joins would stand still for good. Source: runc's Create.
    """
    found: set[int] = set()
    for mount_point in hierarchies(_mountinfo()):
        directory = os.path.join(mount_point, relative)
        if _is_frozen(mount_point, directory):
            raise HostError(
                f"container's cgroup unexpectedly frozen: {directory}",
                hint="thaw it, or those above it",
                code="cgroup-frozen",
            )
        if os.path.isdir(directory):
            pids = _pids_below(directory)
            found |= pids
            if not pids:
                _made.add(directory)
    return len(found)


def _is_frozen(mount_point: str, directory: str) -> bool:
    """Whether it would be: what is not there yet takes after the nearest that is above it."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory != mount_point and freezer.is_frozen(directory)


def _pids_below(directory: str) -> set[int]:
    """The processes of a cgroup and those below it; what goes away meanwhile has none."""
    found: set[int] = set()
    for at, _, _ in os.walk(directory):
        try:
            found |= {int(pid) for pid in read_file(os.path.join(at, "cgroup.procs")).split()}
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
    return found


def _mountinfo() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def join(relative: str, pid: int) -> list[str]:
    """Put `pid` into `relative` in every hierarchy, making it where needed; returns the directories made or
    used.

    Raises `HostError` when no hierarchy accepted it; one that is read-only is passed over.
    """
    mounts = hierarchies(_mountinfo())
    joined: list[str] = []
    refused: OSError | None = None
    for mount_point in mounts:
        directory = os.path.join(mount_point, relative)
        try:
            _make(mount_point, directory)
            write_file(os.path.join(directory, "cgroup.procs"), str(pid))
            joined.append(directory)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                refused = error
    if mounts and not joined and refused is not None:
        raise HostError(f"cannot join cgroup {relative}: {refused.strerror}", code="cgroup")
    return joined


def of_process(pid: int) -> str:
    """The text of its /proc/PID/cgroup; raises `HostError` when it is gone."""
    try:
        return read_file(f"/proc/{pid}/cgroup")
    except OSError as error:
        raise HostError(f"the caller has exited: {error.strerror}", code="cgroup") from error


def follow(leaders: str, pids: Iterable[int]) -> None:
    """Put `pids` into the cgroups of a leader's /proc/PID/cgroup; what refuses is passed over."""
    strangers = [pid for pid in pids if of_process(pid) != leaders]  # a move costs 0.4 ms in each hierarchy
    for directory in freezer.places_of(leaders, _mountinfo()) if strangers else ():
        for pid in strangers:
            try:
                write_file(os.path.join(directory, "cgroup.procs"), str(pid))
            except OSError:
                break  # read-only, or full by the caller's own limit: it stays where the pool is


def _make(mount_point: str, directory: str) -> None:
    """mkdir -p; a v1 cpuset starts empty and refuses tasks until it is given its parent's CPUs and nodes."""
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    if os.path.exists(os.path.join(mount_point, "cgroup.controllers")):
        _hand_down(mount_point, directory)
    try:
        os.mkdir(directory)
        _made.add(directory)
    except FileExistsError:
        pass  # its limits are its maker's
    if not os.path.exists(os.path.join(mount_point, "cpuset.cpus")):
        return
    at = mount_point
    for part in os.path.relpath(directory, mount_point).split("/"):
        parent, at = at, os.path.join(at, part)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not read_file(os.path.join(at, name)).strip():
                write_file(os.path.join(at, name), read_file(os.path.join(parent, name)).strip())


def _hand_down(mount_point: str, directory: str) -> None:
    """Give every cgroup above `directory` the controllers that the one above it has, as runc does.

    Before a process is in it: memory that was used before a controller came is not counted there.
    """
    at = mount_point
    for part in os.path.relpath(directory, mount_point).split("/"):
        available = read_file(os.path.join(at, "cgroup.controllers")).split()
        enabled = read_file(os.path.join(at, "cgroup.subtree_control")).split()
        for name in _CONTROLLERS:
            if name in available and name not in enabled:
                try:
                    write_file(os.path.join(at, "cgroup.subtree_control"), f"+{name}")
                except OSError:
                    pass  # delegated without it, or processes are in it: the limits are refused then
        at = os.path.join(at, part)


def leave_and_remove(directories: list[str], pid: int) -> list[str]:
    """Move `pid` up and remove the directories; returns those that are still in use.

    One cgroup on v1 is many directories: what another container has is waited for once, not in each. What
    `pid` cannot leave is not waited for.
    """
    left = []
    deadline = time.monotonic() + _LEAVE_S
    for directory in directories:
        leaves = _leave(directory, pid)
        try:
            _remove_by(directory, deadline if leaves else 0.0)
        except OSError:
            left.append(directory)
    return left


def _leave(directory: str, pid: int) -> bool:
    """Move `pid` to the nearest cgroup above that takes it: on v2 only the root takes processes beside
    cgroups with controllers (cgroup-v2.rst, "No Internal Process Constraint").
    """
    above = os.path.dirname(directory)
    while os.path.exists(os.path.join(above, "cgroup.procs")):
        try:
            write_file(os.path.join(above, "cgroup.procs"), str(pid))
            return True
        except OSError:
            above = os.path.dirname(above)
    return not os.path.isdir(directory)


def remove(directory: str) -> None:
    """rmdir(2); a waiter that was told of the end a moment ago may still be on its way out. Gone is fine."""
    _remove_by(directory, time.monotonic() + _LEAVE_S)


def _remove_by(directory: str, deadline: float) -> None:
    while True:
        try:
            return os.rmdir(directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)  # v1 has no event for the last process that leaves


def read_file(path: str) -> str:
    """The text of a small kernel file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def write_file(path: str, text: str) -> None:
    """Write a kernel file with one write(2), without creating it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
