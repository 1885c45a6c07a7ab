"""The cgroup of what runs one container on the host: a directory that we make, or a scope that systemd makes.

Systemd's form of linux.cgroupsPath asks for a scope; on a machine without systemd that is a directory at the
place where the scope would be.
"""

from __future__ import annotations

import errno
import os

from bufferzone.errors import HostError
from bufferzone.linux.ignoring import ignoring
from bufferzone.log import passing_over
from bufferzone.oci.cgroup_path import systemd_form, unit_name
from bufferzone.vm import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from bufferzone.vm.leftovers import Leftovers


class Group:
    """A directory in every hierarchy. With an empty `path` processes stay where their caller is: then it is
    false, and not to be begun.
    """

    #: the unit of systemd's that it is; empty: none
    unit = ""
    #: how many processes `check` found in it
    others = 0

    def __init__(self, path: str) -> None:
        self._path = path

    def __bool__(self) -> bool:
        return bool(self._path)

    @property
    def path(self) -> str:
        """Below each hierarchy, without a leading slash; empty where there is none."""
        return self._path

    @property
    def name(self) -> str:
        """What two that are the same have in common."""
        return self.unit or self._path

    def check(self, log: Callable[[str], None]) -> None:
        """Before it is begun; raises `HostError` where whoever joins would stand still."""
        if self:
            self.others = cgroups.claim(self._path)
        if self.others:
            found = f"{self.others} process(es) found: its limits stay as they are"
            log(f"container's cgroup is not empty: {found}")

    def begin(self, pids: Sequence[int], left: Leftovers) -> Callable[[], None]:
        """Put the first processes into it, the first of which is a shim; returns what ends it, once all but
        that one have left. Raises `HostError`.
        """
        joined = cgroups.join(self._path, pids[0])
        left.add_cgroups(joined)
        for pid in pids[1:]:
            cgroups.join(self._path, pid)

        def end() -> None:
            cgroups.leave_and_remove(joined, pids[0])

        return end

    def begin_for_one(self, pid: int, left: Leftovers) -> Callable[[], None]:
        """Put the process that stands for one container into it; returns what ends it after that."""
        joined = cgroups.join(self._path, pid)
        left.add_cgroups(joined)

        def end() -> None:
            _move_up(joined, pid)
            left.drop_cgroups(joined)

        return end

    def join(self, pid: int) -> None:
        """Put one more process into it; raises `HostError`."""
        cgroups.join(self._path, pid)

    def set_properties(self, properties: dict[str, tuple[str, Any]]) -> None:
        """Tell systemd of limits, where it would undo what is only written to files; raises `HostError`."""


class Scope(Group):
    """A transient scope, which systemd takes away once the last process has left it."""

    def __init__(self, unit: str, slice_: str, container_id: str) -> None:
        super().__init__("")
        self.unit, self._slice, self._container_id = unit, slice_, container_id

    def __bool__(self) -> bool:
        return True

    def check(self, log: Callable[[str], None]) -> None:
        """Systemd does: a scope is new, or there is none."""

    def begin(self, pids: Sequence[int], left: Leftovers) -> Callable[[], None]:
        self._start(pids, left)
        return _nothing  # it ends when we do; who deletes the container waits for that

    def begin_for_one(self, pid: int, left: Leftovers) -> Callable[[], None]:
        self._start([pid], left)

        def end() -> None:
            left.drop_scope(self.unit)

        return end

    def join(self, pid: int) -> None:
        places = cgroups.places(self._path)
        if not places:
            raise HostError(
                f"the cgroup of the container is gone: systemd has ended {self.unit}",
                hint=f"journalctl -u {self.unit}",
                code="cgroup",
            )
        try:
            for place in places:
                cgroups.write_file(os.path.join(place, "cgroup.procs"), str(pid))
        except OSError:  # from a session of its own an ordinary user may not move it
            from bufferzone.systemd import scope

            scope.attach(self.unit, pid)

    def set_properties(self, properties: dict[str, tuple[str, Any]]) -> None:
        if properties:
            from bufferzone.systemd import scope

            scope.set_properties(self.unit, properties)

    def _start(self, pids: Sequence[int], left: Leftovers) -> None:
        from bufferzone.systemd import scope

        left.add_scope(self.unit)
        try:
            scope.start(self.unit, self._slice, pids, f"bufferzone container {self._container_id}")
        except HostError:
            left.drop_scope(self.unit)  # there is none of ours: who cleans up would end another's
            raise
        self._path = cgroups.path_in_systemd(cgroups.of_process(pids[0]))
        cgroups.own(cgroups.places(self._path))


def group_of(cgroups_path: str, container_id: str, *, systemd: bool = False) -> Group:
    """What linux.cgroupsPath asks for. `systemd`: the caller wants a scope, also where there is no path; its
    name is the container's then. Raises `SpecError`.
    """
    form = systemd_form(cgroups_path)
    if systemd and not cgroups_path:
        form = ("", "bufferzone", container_id)
    if form is None or not _systemd_runs():
        return Group(cgroups.relative_path(cgroups_path, container_id))
    slice_, prefix, name = form
    return Scope(unit_name(prefix, name), slice_, container_id)


def _systemd_runs() -> bool:
    from bufferzone import systemd

    return systemd.is_there()


def _nothing() -> None:
    pass


def _move_up(directories: Sequence[str], pid: int) -> None:
    """Remove them; a waiter that was told of the end a moment ago is moved out of the way."""
    for directory in directories:
        with passing_over(f"empty {directory}", OSError), ignoring(errno.ENOENT, errno.ENODEV):
            if str(pid) in cgroups.read_file(os.path.join(directory, "cgroup.procs")).split():
                cgroups.write_file(os.path.join(os.path.dirname(directory), "cgroup.procs"), str(pid))
        with passing_over(f"remove {directory}", OSError):
            cgroups.remove(directory)
