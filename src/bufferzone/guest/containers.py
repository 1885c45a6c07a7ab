"""The containers of this VM: which exist, which state each is in, what may be done in it. Knows no wire
format.

States are runc's: creating, created, running, paused, stopped.
"""

from __future__ import annotations

import os

from bufferzone.container import devices, launch, resources, shared_namespaces, submounts
from bufferzone.container.cgroup import Cgroup
from bufferzone.container.child_spec import ChildSpec, namespaces
from bufferzone.container.container import Container
from bufferzone.container.locks import Broker
from bufferzone.container.process import Process
from bufferzone.container.stdio import Streams
from bufferzone.container.zygote import ZygoteSlot
from bufferzone.errors import CallerError, ExistsError, GuestError, NotFoundError, StateError
from bufferzone.wire.process_keys import CGROUP, FILES, MEASURED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.container.loop import Loop
    from bufferzone.guest.server import Reply

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class Containers:
    """All containers. `on_oom(id)` is called whenever the OOM killer has hit one."""

    def __init__(self, loop: Loop, cgroup_root: str, on_oom: Callable[[str], None]) -> None:
        self._loop, self._cgroup_root, self._on_oom = loop, cgroup_root, on_oom
        self.containers: dict[str, Container] = {}
        self.zygotes = ZygoteSlot(loop)
        self.locks = Broker(loop)

    def container(self, id: str) -> Container:
        """Raises `NotFoundError`."""
        found = self.containers.get(id)
        if found is None or found.deleting:
            raise NotFoundError(f"container does not exist: {id}")
        return found

    def process(self, id: str, exec_id: str) -> Process:
        """A container's init (no exec_id) or one of its execs; raises `NotFoundError`."""
        container = self.container(id)
        found = container.execs.get(exec_id) if exec_id else container.init
        if found is None:
            raise NotFoundError(
                f"exec does not exist: {exec_id} in container {id}" if exec_id else f"no process: {id}"
            )
        return found

    def create(
        self, id: str, config: dict[str, Any], seccomp: tuple[bytes, int], locks: list[str], reply: Reply
    ) -> None:
        """Make a container; `reply` gets the pid once its process waits for start.

        `locks`: the parts of the share whose files are locked on the host. A failure leaves nothing behind.
        """
        check_id(id)
        if id in self.containers:
            raise ExistsError(f"container with given ID already exists: {id}")
        shared_namespaces.resolve(config, self._other)
        unshares, joined = namespaces(config)
        cgroup = self._make_cgroup(id)
        try:
            limits = (config.get("linux") or {}).get("resources") or {}
            cgroup.apply(resources.settings(limits))
            cgroup.filter_devices(devices.program(limits.get("devices") or []))
            submounts.hold(config)
            if locks:
                self.locks.volumes.add(locks, str((config.get("root") or {}).get("path") or "/"))
            init = self._launch(
                (id, config, config.get("process") or {}),
                reply,
                lambda callback: self.end(container, callback),
                cgroup=cgroup,
                joins=launch.open_namespaces(joined),
                unshares=unshares,
                init_pid=0,
                seccomp=seccomp,
                locks=bool(locks),
            )
        except BaseException:
            cgroup.remove()
            raise
        container = self.containers[id] = Container(id, config, cgroup, init, locks=bool(locks))
        cgroup.watch_oom(lambda: self._oom(container))

    def _other(self, id: str) -> tuple[int, dict[str, Any]]:
        """The init of a container whose namespaces another one wants, and its config.json."""
        init = self.process(id, "")
        if init.exit is not None or init.state == "creating":
            raise StateError(f"cannot share the namespaces of container {id}: it is not running")
        return init.pid, self.container(id).config

    def execute(
        self,
        id: str,
        exec_id: str,
        process: dict[str, Any],
        seccomp: tuple[bytes, int],
        reply: Reply,
        *,
        patient: bool,
        lingering: bool,
        outlived: bool,
    ) -> None:
        """Start one more process; `reply` gets its pid once its program runs. `patient`: in a paused
        container that is after it was resumed, for its cgroup freezes the process on entry. `lingering`: what
        its descendants write after its end is its output, too; `outlived`: it is, and told apart.

        A failure leaves nothing behind.
        """
        container = self.container(id)
        if container.state not in ("created", "running") and not (patient and container.state == "paused"):
            raise StateError(
                f"cannot exec in a {container.state} container", code=f"container-{container.state}"
            )
        if not exec_id or exec_id in container.execs:
            raise ExistsError(f"exec with given ID already exists: {exec_id}")
        if process.get("capabilities") is None:
            process["capabilities"] = (container.config.get("process") or {}).get("capabilities")

        def discard(callback: Callable[[], None]) -> None:
            self._forget_exec(container, exec_id)
            callback()

        if FILES in process:
            from bufferzone.container import files  # noqa: F401 (for the children to come)
        measured = self._measured(container, process)
        try:
            made = self._launch(
                (id, container.config, process),
                reply,
                discard,
                cgroup=measured or container.cgroup,
                joins=launch.namespaces_of(container.init.pid, container.config),
                unshares=0,
                init_pid=container.init.pid,
                seccomp=seccomp,
                locks=container.locks,
                below=str(process.get(CGROUP) or ""),
            )
        except BaseException:
            if measured is not None:
                container.drop_cgroup(measured)
            raise
        made.measured, made.lingering, made.outlived = measured, lingering, outlived
        container.execs[exec_id] = made

    def _measured(self, container: Container, process: dict[str, Any]) -> Cgroup | None:
        """The cgroup of an exec that is to have one of its own."""
        wanted = process.get(MEASURED)
        return None if wanted is None else container.make_cgroup(int(wanted.get("memory") or 0))

    def _launch(
        self,
        wanted: tuple[str, dict[str, Any], dict[str, Any]],
        reply: Reply,
        discard: Callable[[Callable[[], None]], None],
        *,
        cgroup: Cgroup,
        joins: list[tuple[int, int]],
        unshares: int,
        init_pid: int,
        seccomp: tuple[bytes, int],
        locks: bool,
        below: str = "",
    ) -> Process:
        """Fork the process `wanted`: container id, config, process. `below`: the path of its cgroup, see
        `CGROUP`. The rest is as in `ChildSpec`; `joins` are closed here.
        """
        id, config, process = wanted
        opened = [fd for fd, _ in joins]
        try:
            procs = cgroup.open_procs_below(below) if below else cgroup.open_procs(init_pid)
            opened.append(procs)
            owner = launch.guest_owner(config, process)
            streams = Streams(self._loop, terminal=bool(process.get("terminal")), owner=owner)
            opened += streams.child_ends or ()
            child_spec = ChildSpec(
                id,
                config,
                process,
                joins=joins,
                unshares=unshares,
                stdio=streams.child_ends,
                procs=procs,
                init_pid=init_pid,
                seccomp=seccomp,
                locks=locks,
            )
            listen = self.locks.listen
            return Process(self._loop, child_spec, streams, cgroup, self.zygotes, reply, discard, listen)
        finally:
            for fd in opened:
                os.close(fd)

    def reaped(self, pid: int, status: int) -> None:
        """A child has ended; orphans of containers are nobody's."""
        for container in list(self.containers.values()):
            for process in container.processes():
                if process.pid == pid and process.exit is None:
                    process.reaped(pid, status)
                    if container.empty:
                        self._emptied(container)
                    return

    def signal(self, id: str, exec_id: str, number: int, *, everyone: bool) -> None:
        """Signal a process, or all of the container; of an exec that is measured, all that it started."""
        if not exec_id and everyone:
            container = self.container(id)
            if container.init.state == "created":
                container.init.signal(number)
            container.cgroup.signal(number)
            return
        process = self.process(id, exec_id)
        if everyone and process.measured is not None:
            process.measured.signal(number)
        else:
            process.signal(number)

    def usage(self, id: str, exec_id: str) -> tuple[int, int]:
        """Microseconds of CPU time and peak of memory of a measured exec; raises `NotFoundError`."""
        process = self.process(id, exec_id)
        if process.measured is None:
            raise NotFoundError(f"exec is not measured: {exec_id}")
        return process.measured.usage()

    def pause(self, id: str, frozen: bool, callback: Callable[[], None]) -> None:
        """Freeze or thaw; `callback` is called once it is done."""
        container = self.container(id)
        wanted = ("running", "created") if frozen else ("paused",)
        if container.state not in wanted:
            text = f"container not {wanted[0]}: {container.state}"
            raise StateError(text, code=f"container-not-{wanted[0]}")
        try:
            container.cgroup.freeze(frozen)
        except OSError as error:
            raise GuestError(f"cannot write cgroup.freeze: {error.strerror}", code="cgroup") from error

        def done() -> None:
            container.paused = frozen
            callback()

        container.cgroup.when("frozen", "1" if frozen else "0", done)

    def update(self, id: str, changes: dict[str, Any]) -> None:
        """Change limits: absent keys stay as they are. After an error nothing has changed."""
        container = self.container(id)
        if container.state == "stopped":
            raise StateError("container not running: stopped", code="container-stopped")
        merged = resources.merge(container.resources, changes)
        touched = resources.touched(container.resources, changes)
        filter_ = devices.program(merged.get("devices") or []) if "devices" in changes else None
        container.cgroup.change(resources.settings(touched))
        if filter_ is not None:
            container.cgroup.filter_devices(filter_)
        container.resources = merged

    def adopt(self, id: str, new_id: str) -> Container:
        """Give a container of a restored VM its new name; nobody reads what execs left behind any more."""
        container = self.container(id)
        if new_id != id and new_id in self.containers:
            raise ExistsError(f"container with given ID already exists: {new_id}")
        check_id(new_id)
        del self.containers[id]
        self.containers[new_id] = container
        container.id = new_id
        for exec_id in [exec_id for exec_id, process in container.execs.items() if process.exit is not None]:
            self._forget_exec(container, exec_id)
        return container

    def delete(self, id: str, exec_id: str, callback: Callable[[], None]) -> None:
        """Free a container that is stopped or was never started, or a finished exec; `callback` is called
        when it is gone.
        """
        container = self.container(id)
        if exec_id:
            if self.process(id, exec_id).exit is None:
                raise StateError(f"cannot delete exec {exec_id} that is not stopped")
            self._forget_exec(container, exec_id)
            callback()
            return
        if container.state not in ("stopped", "created"):
            raise StateError(f'cannot delete container "{id}" that is not stopped: {container.state}')
        self.end(container, callback)

    def end(self, container: Container, callback: Callable[[], None]) -> None:
        """Kill whatever is left of a container, whatever its state, free it, and call `callback`."""
        container.deleting = True
        container.when_gone.append(callback)
        if len(container.when_gone) == 1:
            container.cgroup.signal(9)
            container.cgroup.when("populated", "0", lambda: self._emptied(container))

    def _emptied(self, container: Container) -> None:
        """The cgroup is empty; what has not been reaped yet is answered first."""
        container.empty = True
        if all(process.exit is not None for process in container.processes()):
            self._forget(container)
            for callback in container.when_gone:
                callback()

    def _make_cgroup(self, id: str) -> Cgroup:
        try:
            return Cgroup(self._loop, os.path.join(self._cgroup_root, id))
        except OSError as error:
            raise GuestError(f"cannot make the cgroup of {id}: {error.strerror}", code="cgroup") from error

    def _forget(self, container: Container) -> None:
        """Free everything of a container without processes."""
        self.containers.pop(container.id, None)
        container.close()
        container.cgroup.remove()

    def _forget_exec(self, container: Container, exec_id: str) -> None:
        process = container.execs.pop(exec_id, None)
        if process is not None:
            process.close()
            if process.measured is not None:
                container.drop_cgroup(process.measured)

    def _oom(self, container: Container) -> None:
        kills = container.cgroup.oom_kills()
        if kills > container.oom_kills:
            container.oom_kills = kills
            self._on_oom(container.id)


def check_id(id: str) -> None:
    """Raises `CallerError` unless it can name a container and its cgroup."""
    if not id or len(id) > 255 or not _NAME.issuperset(id) or id in (".", ".."):
        raise CallerError(f"invalid container id: {id!r}")
