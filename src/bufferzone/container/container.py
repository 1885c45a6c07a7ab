"""A container as the agent keeps it: its cgroup, its init and its execs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.container.cgroup import Cgroup
    from bufferzone.container.process import Process


class Container:
    """One container, whose init has been forked. `config` is its config.json, `locks` as in `ChildSpec`."""

    def __init__(
        self, id: str, config: dict[str, Any], cgroup: Cgroup, init: Process, *, locks: bool
    ) -> None:
        self.id, self.config, self.cgroup, self.init = id, config, cgroup, init
        self.resources: dict[str, Any] = (config.get("linux") or {}).get("resources") or {}
        self.execs: dict[str, Process] = {}
        self.locks = locks
        self.paused = self.deleting = self.empty = False
        self.when_gone: list[Callable[[], None]] = []
        self.oom_kills = 0
        self.made_below = 0  # cgroups of execs, by number
        self.left_below: list[Cgroup] = []  # of those that have ended: somebody they started may live on

    @property
    def state(self) -> str:
        """One of runc's."""
        if self.paused and self.init.state in ("created", "running"):
            return "paused"
        return {"starting": "running"}.get(self.init.state, self.init.state)

    def make_cgroup(self, memory: int) -> Cgroup:
        """A cgroup for one exec and all it starts; `memory`: bytes, 0: no limit. Raises `GuestError`."""
        self.left_below = [cgroup for cgroup in self.left_below if not cgroup.try_remove()]
        self.made_below += 1
        return self.cgroup.make_below(f"run-{self.made_below}", memory)

    def drop_cgroup(self, cgroup: Cgroup) -> None:
        """Remove it once nobody is in it."""
        if not cgroup.try_remove():
            self.left_below.append(cgroup)

    def processes(self) -> list[Process]:
        """Its init first, then its execs."""
        return [self.init, *self.execs.values()]

    def close(self) -> None:
        """Give up every descriptor of its processes."""
        for process in self.processes():
            process.close()
