"""A sandbox: a VM with a container in it, in which programs are run."""

from __future__ import annotations

import atexit
import os
import threading
import weakref

from bufferzone import oci, state
from bufferzone.client import container, signals
from bufferzone.errors import GuestError, NotFoundError, UsageError
from bufferzone.library import listing, wishes
from bufferzone.library.connections import Connections
from bufferzone.library.files import Files
from bufferzone.library.process import Process
from bufferzone.library.process_object import Wanted, process_object
from bufferzone.library.run import Limits, run
from bufferzone.library.values import Info, Port, Result, Stats
from bufferzone.wire import agent, shim, task
from bufferzone.workload import launch, place, snapshots, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self

    from bufferzone.client.connection import Client
    from bufferzone.library.wishes import Stdin

_MIB = 1 << 20
_SEED_BYTES = 64
#: bytes of output that are kept where nobody says: output without end must not end the caller
OUTPUT_LIMIT = 64 << 20
_ours: weakref.WeakSet[Sandbox] = weakref.WeakSet()


class Sandbox:
    """A sandbox that runs. A context manager: it is removed at the end, unless it is `detached` or was
    attached to. It ends with this process, whatever ends that, unless it is detached.

    Its methods block, and may be called from many threads at once. To start one:

    `image`: None for the programs of this host's /usr and none of its data; a directory (a path object, or
    text with / or ./ in front), of which nothing is changed; or an image as `bz run` takes it, pulled as
    `pull` says: missing, always or never. `command`: what runs in it from the start, given to the image's
    entry point if it has one; without a command it waits for `run`. `name`: else it gets one. `memory_mib`,
    `cpus`, `pids`: limits, 0: none. `network`: none, or passt, behind this host's addresses. `ports`, with
    passt: {host: guest}, or as `bz run -p` has them. `volumes`: {directory or file of the host: place inside,
    with :ro for read-only}. `egress`: rules, see docs/egress.md. `env`, `user`, `cwd`: of every program that
    says nothing else. `disk`: the root file system is a disk, packed once for all sandboxes of an image;
    what is written lies in memory, and the sandbox can be saved. `timeout_s`: it is ended then. `labels`:
    annotations. `kvm`: require, warn or allow. `progress` is told the steps of pulling, and where the guest
    image is built first. `root`: another state root.

    Raises `UsageError`, `CallerError` for an image that cannot be had, `ExistsError` for a name that is
    taken, `HostError`, `VmmError`, `GuestError`.
    """

    _timer: threading.Timer | None = None
    _base: dict[str, Any] | None = None
    _place: place.Place | None = None

    def __init__(
        self,
        image: str | os.PathLike[str] | None = None,
        *,
        command: Sequence[str] | None = None,
        name: str = "",
        memory_mib: int = 0,
        cpus: float = 0.0,
        pids: int = 0,
        network: str = "none",
        ports: Mapping[int, int] | Sequence[str] = (),
        volumes: Mapping[str | os.PathLike[str], str] | None = None,
        egress: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
        read_only: bool = False,
        disk: bool = False,
        timeout_s: float | None = None,
        detached: bool = False,
        labels: Mapping[str, str] | None = None,
        kvm: str = "",
        pull: str = "missing",
        progress: Callable[[str], None] = lambda line: None,
        root: str = "",
    ) -> None:
        """Start one. Raises as the class says; then nothing is left."""
        if detached and timeout_s is not None:
            raise UsageError("a detached sandbox has no timeout_s: nobody is there to end it")
        wish = wishes.wish_of(
            image, command, memory_mib=memory_mib, cpus=cpus, pids=pids, network=network, ports=ports,
            volumes=volumes, egress=egress, env=env, user=user, cwd=cwd, read_only=read_only, disk=disk,
            labels=labels, kvm=kvm, pull=pull, progress=progress,
        )  # fmt: skip
        begun = launch.Launch(wish, state.runtime_root(root), name or launch.new_id(), transient=not detached)
        client = _begin(begun, progress, detached=detached)
        self._place = None if detached else begun.place
        self._set(begun.root, begun.id, Connections(os.path.join(begun.root, begun.id), client))
        if client is not None:
            _ours.add(self)
        if timeout_s is not None:
            self._timer = threading.Timer(timeout_s, self._end)
            self._timer.daemon = True
            self._timer.start()

    def _set(self, root: str, name: str, connections: Connections) -> None:
        self._root, self.name, self._connections = root, name, connections
        self._directory = os.path.join(root, name)
        self._rootfs = ""
        self._removing = threading.Lock()
        self.files = Files(connections, name, self._process)

    @classmethod
    def attach(cls, name: str, *, root: str = "") -> Self:
        """One that runs already, whoever started it: bz, Podman, another program. It goes on when we end.

        Raises `NotFoundError`, or `StateError` for one that has ended.
        """
        found = cls.__new__(cls)
        base = state.runtime_root(root)
        directory = container.find(base, name)
        if state.status(directory) not in (state.CREATED, state.RUNNING, state.PAUSED):
            raise container.refusal("exec", name, state.status(directory))
        found._set(base, name, Connections(directory))
        return found

    @classmethod
    def from_snapshot(cls, snapshot: str, *, name: str = "", detached: bool = False, root: str = "") -> Self:
        """One that goes on where `snapshot` was saved: with fresh random numbers, clock and host name, and
        what its processes remember. It is ours, unless it is `detached`. Raises `NotFoundError`, and as the
        class says.
        """
        return cls._restored(snapshots.find(snapshot), state.runtime_root(root), name, detached=detached)

    @classmethod
    def _restored(cls, saved: str, root: str, name: str, *, detached: bool = False) -> Self:
        begun = snapshots.Restore(saved, root, name or launch.new_id(), transient=not detached)
        client = None
        with wishes.stdio(begun.place) as fds:
            if detached:
                begun.run_detached(fds, forked=False)
            else:
                client = begun.run_held(fds)
        found = cls.__new__(cls)
        found._set(root, begun.id, Connections(os.path.join(root, begun.id), client))
        if client is not None:
            found._place = begun.place
            _ours.add(found)
        try:
            found._reseed(begun.reseed)
        except BaseException:
            found.remove()
            raise
        return found

    def _reseed(self, wanted: snapshots.Reseed) -> None:
        """Tell it that it is another one now."""
        if wanted.file:
            self.files.write(wanted.file, os.urandom(_SEED_BYTES), mode=0o600)
        if wanted.signal:
            number = signals.number_of(wanted.signal)
            self._connections.call("Kill", task.KillRequest(id=self.name, signal=number))
        if wanted.hook and not (done := self.run(wanted.hook, timeout_s=wanted.timeout_s)).ok:
            why = f"failed: {done.verdict}"
            if done.verdict == "timeout":
                why = f"did not end within {wanted.timeout_s:g} s"
            said = (done.stderr.splitlines() or [""])[-1][:200]
            raise GuestError(f"the hook of the snapshot {why}", hint=said, code="hook-failed")

    @staticmethod
    def list(*, root: str = "") -> builtins.list[Info]:
        """All there are, whoever started them."""
        return listing.sandboxes(state.runtime_root(root))

    # ---- programs

    def run(
        self,
        args: Sequence[str],
        *,
        stdin: Stdin = None,
        timeout_s: float | None = None,
        cpu_time_s: float | None = None,
        memory_mib: int = 0,
        output_limit: int | None = OUTPUT_LIMIT,
        user: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        stop: int = -1,
    ) -> Result:
        """Run a program to its end; how it ended is the result, also where it failed.

        `stdin`: text, bytes, or an open file. `timeout_s` counts from the call, `cpu_time_s` what it and all
        it started have used; `memory_mib` is a limit for the same, within the sandbox's. `output_limit`:
        bytes of stdout and stderr together. Whoever exceeds one is killed with all it started, and so is it
        when the descriptor `stop` (an eventfd, a pipe) becomes readable. Processes that it leaves behind
        otherwise live on.

        Raises `ExecError` where there is no such program, `StateError` where the sandbox is paused or has
        ended, `VmmError` where the VM is lost.
        """
        wanted = Wanted(args, env=env, cwd=cwd, user=user, memory_mib=memory_mib)
        limits = Limits(timeout_s, cpu_time_s, output_limit, stop)
        return run(self._connections, self.name, self._process(wanted), wishes.input_of(stdin), limits)

    def start(
        self,
        args: Sequence[str],
        *,
        memory_mib: int = 0,
        user: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        pty: bool | tuple[int, int] = False,
    ) -> Process:
        """Start a program and return it while it runs, with its streams. `pty`: it has a terminal, of so
        many columns and rows; stdout is that then, and stdin what is typed. Raises as `run` does.
        """
        size = None if pty is False else (80, 24) if pty is True else pty
        wanted = Wanted(args, env=env, cwd=cwd, user=user, memory_mib=memory_mib, terminal=size)
        return Process(self._connections, self.name, self._process(wanted))

    def _process(self, wanted: Wanted) -> dict[str, Any]:
        if self._base is None:
            try:
                spec = oci.load(str(state.read_state(self._directory)["bundle"]))
            except NotFoundError as error:
                raise self._connections.explained(error) from error
            self._rootfs, self._base = spec.rootfs, spec.process
        return process_object(self._base, wanted, self._find_user)

    def _find_user(self, text: str) -> users.User:
        return users.find_in_container(self._directory, self._rootfs, text)

    # ---- the whole

    @property
    def status(self) -> str:
        """creating, created, running, paused or stopped; stopped too where it was removed."""
        try:
            return state.status(self._directory)
        except NotFoundError:
            return state.STOPPED

    def info(self) -> Info:
        """What others see of it; raises `NotFoundError`."""
        return listing.info(self._root, self.name)

    def stats(self) -> Stats:
        """What it uses now."""
        ref = agent.ProcessRef(id=self.name)
        answer = self._connections.call("Metrics", ref, service=shim.SERVICE)
        return listing.stats({counter.name: counter.value for counter in answer.counters})

    @property
    def ports(self) -> builtins.list[Port]:
        """The ports of the host that lead into it."""
        return listing.ports(self._directory)

    def logs(self) -> str:
        """What its command wrote so far, stdout and then stderr; empty where there is none."""
        return listing.logs(self._directory)

    def pause(self) -> None:
        """Freeze all that runs in it."""
        self._connections.call("Pause", task.PauseRequest(id=self.name))

    def resume(self) -> None:
        """Let it go on."""
        self._connections.call("Resume", task.ResumeRequest(id=self.name))

    def snapshot(
        self, name: str, *, reseed: snapshots.Reseed = snapshots.NOTHING, replace: bool = False
    ) -> None:
        """Save it under a name, for `from_snapshot`; it goes on. docs/library.md says what can be saved: one
        on a disk, no volumes, no network, and no program of `run` or `start` meanwhile. `reseed`: how each
        that goes on is told that it is another one. `replace`: an older one of that name is taken away.
        """
        snapshots.save(self._directory, name, reseed, replace=replace)

    def fork(self, count: int = 1, *, reseed: snapshots.Reseed = snapshots.NOTHING) -> builtins.list[Self]:
        """So many running copies of it, which are ours; it goes on. Raises as `snapshot`; then none is."""
        made: builtins.list[Self] = []
        with snapshots.unnamed(self._directory, snapshots.parent(), reseed) as saved:
            try:
                for _ in range(count):
                    made.append(type(self)._restored(saved, self._root, ""))
            except BaseException:
                for copy in made:
                    copy.remove()
                raise
        return made

    def wait(self) -> int:
        """Wait until its command has ended; the exit status."""
        answer = self._connections.call("Wait", task.WaitRequest(id=self.name))
        return min(int(answer.exit_status), 255)

    def close(self) -> None:
        """Let go of it: one that is ours is removed, one that is detached or was attached to goes on."""
        if self._connections.holds:
            self.remove()
        self._connections.close()

    def remove(self) -> None:
        """End it and remove all that is its own on the disk, whoever started it; twice is harmless."""
        with self._removing:
            if self._timer is not None:
                self._timer.cancel()
            try:
                launch.remove(self._root, self.name, force=True)
            except NotFoundError:
                pass  # somebody else did
            self._connections.close()
            if self._place is not None:
                self._place.remove()
                self._place = None

    def _end(self) -> None:
        """Its time is up."""
        launch.kill(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<bufferzone.Sandbox {self.name} {self.status}>"


def _begin(begun: launch.Launch, progress: Callable[[str], None], *, detached: bool) -> Client | None:
    """Start it; unless it is detached, the connection that it lives as long as."""
    with wishes.stdio(begun.place) as fds:
        if not detached:
            return begun.run_held(fds, progress=progress)
        begun.run_detached(fds, forked=False, progress=progress)
        return None


def _remove_ours() -> None:
    """The program ends in an orderly way: nothing is left."""
    for sandbox in list(_ours):
        if sandbox._connections.holds:
            sandbox.remove()


atexit.register(_remove_ours)
