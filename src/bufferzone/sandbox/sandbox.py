"""A sandbox that is up or coming up: its processes watched, its failure explained once, its end awaited.

Three things run: the boot thread (greets the VMM and the agent), the agent's reader, and the main thread in
`wait_end`, which watches the helpers' pidfds. The first failure wins and reaches every pending call.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from functools import partial

from bufferzone.errors import BufferzoneError, VmmError
from bufferzone.record import Record, replace
from bufferzone.recorder import Silent
from bufferzone.sandbox import locks, openfiles
from bufferzone.vm.hello import be_greeted, begin_hello, mount_share
from bufferzone.vm.timeline import GUEST
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.recorder.journal import Journal
    from bufferzone.sandbox.facts import Facts
    from bufferzone.sandbox.networks import Network
    from bufferzone.sandbox.rootdisk import RootDisk
    from bufferzone.vm.group import Group
    from bufferzone.vm.launch import RunningVm
    from bufferzone.vm.leftovers import Leftovers
    from bufferzone.vm.timeline import Timeline

#: how long the VMM may take to end after its guest went silent, before we call the agent dead and not the VM
_SETTLE_S = 1.0
#: how long a guest may take to forget files
_FORGET_S = 60.0
#: how long a peer that does not take what the last container sent may hold back its end, and how often we ask
_LEAVING_S, _LEAVING_STEP_S = 2.0, 0.01
#: what ends a VM from outside: its guest may have been about to come up
_NOT_THE_GUESTS = frozenset({"vm-killed", "virtiofsd-died"})


def _nothing() -> None:
    """For a start after which nothing is left to do."""


class HostSide(Record):
    """What a sandbox has of the host beside its VM. Owned by whoever made it.

    `disk`: what the root file system is on, None: it is shared. `cgroup`: what its processes are in.
    `recorder` is told what becomes of it.
    """

    network: Network
    disk: RootDisk | None
    cgroup: Group
    left: Leftovers
    timeline: Timeline
    log: Callable[[str], None]
    recorder: Journal | Silent = Silent()


class Start(Record):
    """How a sandbox starts. `kind` is cold, warm, pool or restored; `adopts` the guest's container that waits
    to be taken over, in a VM of a checkpoint.

    `came_up` is told whether its guest came up; None: the host ended it before. `finish` is what has to be
    done before the first container and not before the sandbox is served; raises `BufferzoneError`.
    """

    kind: str
    settings: Settings
    adopts: str = ""
    came_up: Callable[[bool | None], None] = lambda well: None
    finish: Callable[[], None] = _nothing


class Sandbox:
    """One VM with its helpers and what the host holds for it. Does not own them: `boot` gives them back."""

    def __init__(self, sandbox_id: str, vm: RunningVm, host: HostSide, start: Start, facts: Facts) -> None:
        self.id = sandbox_id
        self.vm = vm
        self.start = start
        self.agent, self.tree = vm.agent, vm.tree
        self.network, self.disk, self.cgroup = host.network, host.disk, host.cgroup
        self.left, self.log = host.left, host.log
        self.recorder = host.recorder
        self.failure: VmmError | None = None
        self._vmm, self._timeline, self._facts = vm.vmm, host.timeline, facts
        self._ready, self._finished, self._looked_at = (threading.Event() for _ in range(3))
        self._lock = threading.Lock()
        self.when_up: Callable[[], None] = _nothing  # called when it is ready and nobody waits any more
        self.when_failed: Callable[[VmmError], None] = lambda error: None  # called once, before others know
        self._stopping = self._locks_served = self._unfinished = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._end = False

    # ---- coming up

    def start_threads(self) -> None:
        """Start reading and greeting. Nothing may be forked with `jail` from now on."""
        self.vm.watch()
        self.agent.when_broken(self._agent_broke)
        self.agent.start()
        threading.Thread(target=self._come_up, name="boot", daemon=True).start()

    def wait_ready(self) -> None:
        """Wait until the agent answers and the share is mounted; raises the explained failure."""
        self._ready.wait()
        self._finished.wait()
        if self.failure is not None:
            raise self.failure

    def before_a_program(self) -> None:
        """Wait until somebody has looked what the helpers hold, and have the network begin; raises the
        failure, too much among them.
        """
        self._looked_at.wait()
        if self.failure is not None:
            raise self.failure
        self.network.begin()

    def finish_start(self) -> None:
        """Do what a container needs and its caller does not wait for; a failure is the sandbox's."""
        try:
            self.start.finish()
        except BufferzoneError as error:
            self._unfinished = True
            self._fail(VmmError(error.message, hint=error.hint, code=error.code))
        finally:
            self._finished.set()

    def _come_up(self) -> None:
        timeout_s = self.start.settings.boot_timeout_s
        try:
            answer = self._greet(timeout_s)
            if self.tree is not None and not self.vm.share_mounted:
                self._timeline.enter("mount the share")
                mount_share(self.agent, timeout_s, plugged=self.vm.awake)
            self._timeline.finish()
            self._facts = replace(self._facts, guest_kernel=answer.kernel[:128], vmm=self._vmm.version)
        except VmmError as error:
            waited = timeout_s if error.code == "agent-timeout" else None
            self._fail(
                error
                if self._vmm_ended()
                or self.failure
                or error.code.startswith("vm")  # the VMM's own: what it refused, or explained
                else self._vmm.failure(self._timeline.phase, waited_s=waited)
            )
        except BufferzoneError as error:
            self._fail(VmmError(f"{self._timeline.phase}: {error.message}", hint=error.hint, code=error.code))
        finally:
            try:
                self.start.came_up(self._came_up())
            finally:
                self._ready.set()
        if self.failure is None:
            self._look_at_helpers()
            self.when_up()

    def _came_up(self) -> bool | None:
        """Whether the guest came up; None: something of the host's ended it before it could."""
        if self.failure is None:
            return None if self._stopping else True
        return None if self._unfinished or self.failure.code in _NOT_THE_GUESTS else False

    def _look_at_helpers(self) -> None:
        """While the container is made: its program waits for this."""
        policy = self.start.settings.self_audit
        try:
            if policy != "off" and self._vmm.features.wall:
                from bufferzone.sandbox import selfaudit

                selfaudit.check((*self.vm.helpers, *self.network.helpers), policy, self.log)
        except VmmError as error:
            self._fail(error)
        finally:
            self._looked_at.set()

    def _greet(self, timeout_s: float) -> agent.HelloResponse:
        """The VMM answers, and then the guest."""
        if not self.vm.awake:
            self.vm.greet(timeout_s)
        begun = self.vm.greeting or begin_hello(self.agent, self.id, timeout_s)
        answer = be_greeted(self.agent, begun, timeout_s)
        if not self.vm.awake:  # else they are the template's
            self._timeline.add_guest(answer.phases)
        return answer

    def mount_root(self, disk: RootDisk) -> None:
        """Give the guest the image it already has a device for, and have it mounted; raises what went
        wrong.
        """
        kind, fd = disk.image()
        self._vmm.insert_disk(agent.ROOT_DISK, fd)
        self.agent.call(
            "MountRoot",
            agent.MountRootRequest(kind=kind, layers=disk.layers),
            Empty,
            timeout_s=self.start.settings.boot_timeout_s,
        )

    # ---- while it is up

    def serve_locks(self) -> None:
        """Hold locks of files in the share for the guest from now on; a second call changes nothing."""
        with self._lock:
            begun, self._locks_served = self._locks_served, True
        if not begun and self.tree is not None:
            threading.Thread(
                target=locks.serve, args=(self.agent, self.tree), name="locks", daemon=True
            ).start()

    @property
    def vcpus(self) -> int:
        """CPUs of the VM."""
        return self._facts.vcpus

    @property
    def memory_mib(self) -> int:
        """Memory of the VM."""
        return self._facts.memory_mib

    def facts(self) -> Facts:
        """What is known of the sandbox by now."""
        failure = "" if self.failure is None else self.failure.message
        return replace(self._facts, failure=failure, refused=tuple(self.network.refused().items()))

    def annotations(self) -> dict[str, str]:
        """What `state` tells of the sandbox."""
        return self.facts().to_annotations()

    def phases(self) -> list[tuple[str, float]]:
        """The host's phases of the boot with their ends in ms; those of the guest are its own words."""
        return [mark for mark in self._timeline.marks() if not mark[0].startswith(GUEST)]

    def info(self) -> dict[str, Any]:
        """Everything known, for people; the keys are those of `wire.shim.InfoResponse`."""
        facts = self.facts()
        refused = dict(facts.refused)
        return {
            "id": self.id,
            "accelerator": facts.accelerator,
            "kvm": facts.kvm,
            "kernel": facts.guest_kernel,
            "image": facts.image,
            "vcpus": facts.vcpus,
            "memory_mib": facts.memory_mib,
            "start": facts.start,
            "vmm": facts.vmm,
            "failure": facts.failure,
            "egress": " ".join(facts.egress),
            "egress_denied": refused.get("denied", 0),
            "egress_forged": refused.get("forged", 0),
            "vmm_pid": self._vmm.pid,
            "virtiofsd_pid": self.vm.virtiofsd.pid if self.vm.virtiofsd is not None else 0,
            "shim_pid": os.getpid(),
            "timeline": [list(mark) for mark in self._timeline.marks()],
        }

    def container_stopped(self, alone: bool) -> None:
        """A container's init is gone; when it was `alone`, the VM is of no more use and ends now.

        Not before what its processes sent has left.
        """
        if alone:
            self.let_leave()
            with self._lock:
                self._stopping = True
            self.vm.kill()

    def let_leave(self) -> None:
        """Wait until what processes sent before their end has left, for a while; see `guest/unsent.py`."""
        if not self.network.is_joined or self.failure is not None or self._stopping:
            return
        deadline = time.monotonic() + _LEAVING_S
        try:
            while (left := deadline - time.monotonic()) > 0:
                if not self.agent.call("Unsent", Empty(), agent.UnsentResponse, timeout_s=left).connections:
                    return
                time.sleep(_LEAVING_STEP_S)
        except BufferzoneError as error:  # the VM is gone, or will not tell
            self.log(f"what the last container sent may not have left: {error.line()}")

    def give_up(self, reason: str) -> None:
        """The guest does not do what it must: end the VM for `reason`."""
        self._fail(VmmError(reason, code="guest-disobeyed"))

    # ---- the end

    def end(self) -> None:
        """Let `wait_end` return."""
        self._end = True
        self._wake()

    def wait_end(self, unused: Callable[[], bool], unused_s: float) -> None:
        """Watch the helpers until `end` is called, or nothing used the sandbox for `unused_s` after its
        start.
        """
        poll = select.poll()
        watched = {self._wake_read: "", **dict(zip(self.vm.filenos, ("vmm", "virtiofsd"), strict=False))}
        for fd in watched:
            poll.register(fd, select.POLLIN)
        files = self._open_files()
        unused_at = time.monotonic() + unused_s
        look_s = files.look() if files else math.inf
        while not self._end:
            left_s = max(0.0, min(unused_at - time.monotonic(), look_s))
            ready = poll.poll(None if left_s == math.inf else left_s * 1000)
            if files and not ready:
                look_s = files.look()
            if time.monotonic() >= unused_at:
                unused_at = math.inf
                if unused():
                    self.log("no container was created in this sandbox: ending")
                    return
            for fd, _ in ready:
                if fd == self._wake_read:
                    os.read(fd, 64)
                else:
                    poll.unregister(fd)
                    self._helper_ended(watched[fd])

    def _open_files(self) -> openfiles.OpenFiles | None:
        """What looks after those of virtiofsd, if there is one."""
        if self.vm.virtiofsd is None:
            return None
        forget = partial(self.agent.call, "Forget", Empty(), Empty, timeout_s=_FORGET_S)
        most = openfiles.allowed(self.start.settings.open_files)
        return openfiles.OpenFiles(self.vm.virtiofsd.pid, most, forget, self.log)

    def close(self) -> None:
        """End the agent's connection; the helpers are ended by whoever started them."""
        with self._lock:
            self._stopping = True
        self.agent.close()

    def _helper_ended(self, name: str) -> None:
        with self._lock:
            if self._stopping or self.failure is not None:
                return
        if name == "vmm":
            self._fail(self._vmm.failure(self._timeline.phase))
        else:
            child = self.vm.virtiofsd
            status, denied = (child.wait_exit(0), child.denied) if child is not None else (None, "")
            how = (
                f"was killed (signal {-status})"
                if status is not None and status < 0
                else f"ended with status {status}"
            )
            lost = f"virtiofsd {how}: the sandbox lost its file system"
            self._fail(VmmError(lost, hint=denied, code="virtiofsd-died"))

    def _agent_broke(self, error: VmmError) -> None:
        """The channel is gone: because the VM is, or because the agent misbehaves; then the VM has to go."""
        with self._lock:
            if self._stopping or self.failure is not None:
                self.agent.lose(self.failure or error)
                return
        self._fail(self._vmm.failure(self._timeline.phase) if self._vmm_ended() else error)

    def _vmm_ended(self) -> bool:
        fd = self._vmm.fileno()
        if fd < 0:  # it was closed, by a thread that ends the sandbox while this one boots it
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(_SETTLE_S * 1000))

    def _fail(self, error: VmmError) -> None:
        with self._lock:
            if self.failure is None and not self._stopping:
                self.failure = error
                self.log(error.line())
                self.when_failed(error)
                self.recorder.note("failure", reason=error.line(), code=error.code)
        self._ready.set()
        self._looked_at.set()
        self.agent.lose(self.failure or error)
        self.vm.kill()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # it is awake already
