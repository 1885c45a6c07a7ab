"""A sandbox: a VM with a container in it, in which programs are run, and more containers where wanted."""

from __future__ import annotations

import os
import threading

from bufferzone import state
from bufferzone.client import container, signals
from bufferzone.errors import (
    SANDBOX_ENDED,
    BufferzoneError,
    CallerError,
    ExecError,
    ExistsError,
    GuestError,
    HostError,
    NotFoundError,
    SpecError,
    StateError,
    UsageError,
)
from bufferzone.library import listing, wishes
from bufferzone.library.container import Container, is_ending
from bufferzone.library.values import Info, Port
from bufferzone.vm.size import usable_mib
from bufferzone.wire import task
from bufferzone.workload import launch, snapshots

TYPE_CHECKING = False
if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from bufferzone.client.connection import Client
    from bufferzone.workload import place

_SEED_BYTES = 64


class Sandbox(Container):
    """A sandbox that runs, and its first container, with all that a `Container` has. A context manager: it is
    removed at the end, unless it is `detached` or was attached to. It ends with this process, whatever ends
    that, unless it is detached.

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

    _kind = "sandbox"
    _timer: threading.Timer | None = None
    _network = "none"

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
        self._set(begun.root, begun.id, client, None if detached else begun.place)
        self._network = network
        if timeout_s is not None:
            self._timer = threading.Timer(timeout_s, self._end)
            self._timer.daemon = True
            self._timer.start()

    def _set(self, root: str, name: str, held: Client | None = None, at: place.Place | None = None) -> None:
        super().__init__(root, name, held, at)
        self._adding = threading.Lock()
        self._inside: builtins.list[Container] = []
        self._removed = False

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
        found._set(base, name)
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
        found._set(root, begun.id, client, None if detached else begun.place)
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

    # ---- more containers

    def container(
        self,
        image: str | os.PathLike[str] | None = None,
        *,
        command: Sequence[str] | None = None,
        name: str = "",
        memory_mib: int = 0,
        cpus: float = 0.0,
        pids: int = 0,
        volumes: Mapping[str | os.PathLike[str], str] | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
        read_only: bool = False,
        labels: Mapping[str, str] | None = None,
        pull: str = "missing",
        progress: Callable[[str], None] = lambda line: None,
    ) -> Container:
        """Start one more container in the same VM. It has the sandbox's network, so that they reach each
        other at 127.0.0.1, its IPC namespace and /dev/shm; all else is its own: root file system, volumes,
        host name, processes, users, limits. The arguments are those of `Sandbox`; a limit is one within the
        VM, whose size is fixed. A name is one among all sandboxes'. What is written to the root file system
        is thrown away, also where the image is a directory.

        It ends when it is closed, and with the sandbox; the sandbox goes on when it ends. Raises as
        `Sandbox`; `StateError` too for a sandbox that has ended (`sandbox-ended`), that is detached or not
        this process's (`not-ours`), or whose root file system is on a disk (`vm-shared`), and `CallerError`
        `vm-size` for more than its VM has. Then nothing is left.
        """
        self._check_room(memory_mib, cpus)
        wish = wishes.wish_of(
            image, command, memory_mib=memory_mib, cpus=cpus, pids=pids, network=self._network, ports=(),
            volumes=volumes, egress=None, env=env, user=user, cwd=cwd, read_only=read_only, disk=False,
            labels=labels, kvm="", pull=pull, progress=progress, inside=self.name,
        )  # fmt: skip
        begun = launch.Launch(wish, self._root, name or launch.new_id(), transient=True)
        try:
            client = _begin(begun, progress, detached=False)
        except BufferzoneError as error:
            mistaken = isinstance(error, (UsageError, ExistsError, SpecError, ExecError, HostError))
            if self._removed or (not mistaken and is_ending(self)):
                raise self._ended() from error
            raise
        made = Container(begun.root, begun.id, client, begun.place)
        with self._adding:
            if not self._removed:
                living = [each for each in self._inside if each._connections.holds]
                self._inside = [*living, made]
                return made
        made.remove()
        raise self._ended()

    def _check_room(self, memory_mib: int, cpus: float) -> None:
        """Raises what keeps another container out, before anything is made."""
        try:
            facts = self.info().annotations
        except NotFoundError as error:
            raise self._ended() from error
        if self.status == state.STOPPED:
            raise self._ended()
        if not self._connections.holds:
            what = f"a container can be added only by the program that started the sandbox: {self.name}"
            hint = "one that is detached or was attached to has no other; nor is it for the child of a fork"
            raise StateError(what, hint=hint, code="not-ours")
        if facts.get("bufferzone.rootfs") == "block":
            what = f"a sandbox whose root file system is on a disk has one container: {self.name}"
            hint = "start it from an image without disk=True; a directory is always a disk"
            raise StateError(what, hint=hint, code="vm-shared")
        has_mib, vcpus = (int(facts.get(f"bufferzone.{key}", 0)) for key in ("memory", "vcpus"))
        fits = memory_mib <= usable_mib(has_mib) and cpus <= vcpus
        if has_mib and not fits:
            has = f"memory_mib={usable_mib(has_mib)}, cpus={vcpus} for its containers"
            raise CallerError(
                f"memory_mib={memory_mib}, cpus={cpus:g}: the VM of sandbox {self.name} has {has}",
                hint="its size is fixed at its start: start the sandbox with larger limits",
                code="vm-size",
            )

    def _ended(self) -> StateError:
        return StateError(f"the sandbox has ended: {self.name}", code=SANDBOX_ENDED)

    def remove(self) -> None:
        """End it and remove all that is its own on the disk, whoever started it; twice is harmless. Its other
        containers go first.
        """
        if self._timer is not None:
            self._timer.cancel()
        with self._adding:
            inside, self._inside, self._removed = self._inside, [], True
        for made in inside:
            made.remove()
        super().remove()

    # ---- the whole

    @property
    def ports(self) -> builtins.list[Port]:
        """The ports of the host that lead into it."""
        return listing.ports(self._directory)

    def snapshot(
        self, name: str, *, reseed: snapshots.Reseed = snapshots.NOTHING, replace: bool = False
    ) -> None:
        """Save it under a name, for `from_snapshot`; it goes on. docs/library.md says what can be saved: one
        on a disk, no volumes, no network, and no program of `run` or `start` meanwhile. `reseed`: how each
        that goes on is told that it is another one. `replace`: an older one of that name is taken away.
        """
        self._check_single()
        snapshots.save(self._directory, name, reseed, replace=replace)

    def fork(self, count: int = 1, *, reseed: snapshots.Reseed = snapshots.NOTHING) -> builtins.list[Self]:
        """So many running copies of it, which are ours; it goes on. Raises as `snapshot`; then none is."""
        self._check_single()
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

    def _check_single(self) -> None:
        others = [made.name for made in self._inside if made.status != state.STOPPED]
        if others:
            text = (
                f"a sandbox with more containers cannot be saved: {self.name} has {', '.join(others)[:120]}"
            )
            raise StateError(text, hint="remove them first", code="not-saveable")

    def _end(self) -> None:
        """Its time is up."""
        launch.kill(self._directory)


def _begin(begun: launch.Launch, progress: Callable[[str], None], *, detached: bool) -> Client | None:
    """Start it; unless it is detached, the connection that it lives as long as."""
    with wishes.stdio(begun.place) as fds:
        if not detached:
            return begun.run_held(fds, progress=progress)
        begun.run_detached(fds, forked=False, progress=progress)
        return None
