"""A sandbox that is up or coming up: its processes watched, its failure explained once, its end awaited.

Three things run: the boot thread (greets the VMM and the agent), the agent's reader, and the main thread in
`wait_end`, which watches the helpers' pidfds. The first failure wins and reaches every pending call.
"""

from __future__ import annotations

import os
import select
import threading

from bufferzone.errors import BufferzoneError, VmmError
from bufferzone.sandbox import locks
from bufferzone.vm.hello import be_greeted, begin_hello, mount_share
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.sandbox.network import Network
    from bufferzone.sandbox.rootdisk import RootDisk
    from bufferzone.snapshot.checkpoint import Capture
    from bufferzone.spawn import Child
    from bufferzone.storage.share import Tree
    from bufferzone.vm.agent_client import AgentClient, Pending
    from bufferzone.vm.leftovers import Leftovers
    from bufferzone.vm.timeline import Timeline
    from bufferzone.vmm.console import Reader
    from bufferzone.vmm.interface import Vmm

#: how long the VMM may take to end after its guest went silent, before we call the agent dead and not the VM
_SETTLE_S = 1.0


class Sandbox:
    """One VM with its helpers. Does not own them: `boot` gives them back."""

    def __init__(
        self,
        sandbox_id: str,
        *,
        vmm: Vmm,
        daemon: Child | None,
        daemon_log: Reader | None,
        share: Tree | None,
        disk: RootDisk | None,
        agent_client: AgentClient,
        network: Network,
        timeline: Timeline,
        cgroup: str,
        left: Leftovers,
        boot_timeout_s: float,
        facts: dict[str, str],
        log: Callable[[str], None],
        restored: bool,
        then: Callable[[bool], None],
        mounted: bool = False,
        capture: Capture | None = None,
        adopts: str = "",
        greeting: Pending | None = None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        """`adopts`: the guest's container that waits to be taken over, in a VM of a checkpoint.
        `daemon` and `share`: None where nothing is shared. `disk`: where the root file system is not.
        `restored`: the VMM was greeted and the guest is awake already, `mounted`: with its share; `then` is
        told whether the sandbox became ready. `greeting`: the Hello that was sent already. `settle`: what has
        to be done before the first container and not before the sandbox is served, see there.
        """
        self.id = sandbox_id
        self.agent = agent_client
        self.network = network
        self.capture = capture
        self.adopts = adopts
        self.share = share
        self.disk = disk
        self.cgroup = cgroup
        self.left = left
        self.log = log
        self.failure: VmmError | None = None
        self._vmm, self._daemon, self._timeline = vmm, daemon, timeline
        self._daemon_log = daemon_log
        self._boot_timeout_s = boot_timeout_s
        self._facts, self._restored, self._mounted, self._then = facts, restored, mounted, then
        self._greeting, self._settle = greeting, settle
        self._ready, self._settled = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._stopping = self._locks_served = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._end = False

    # ---- coming up

    def start_threads(self) -> None:
        """Start reading and greeting. Nothing may be forked with `jail` from now on."""
        self._vmm.watch()
        if self._daemon_log is not None:
            self._daemon_log.start()
        self.agent.when_broken(self._agent_broke)
        self.agent.start()
        threading.Thread(target=self._come_up, name="boot", daemon=True).start()

    def wait_ready(self) -> None:
        """Wait until the agent answers and the share is mounted; raises the explained failure."""
        self._ready.wait()
        self._settled.wait()
        if self.failure is not None:
            raise self.failure

    def settle(self) -> None:
        """Do what a container needs and its caller does not wait for; a failure is the sandbox's."""
        try:
            if self._settle is not None:
                self._settle()
        except BufferzoneError as error:
            self._fail(VmmError(error.message, hint=error.hint, code=error.code))
        finally:
            self._settled.set()

    def _come_up(self) -> None:
        try:
            if not self._restored:
                self._vmm.greet()
            begun = self._greeting or begin_hello(self.agent, self.id, self._boot_timeout_s)
            answer = be_greeted(self.agent, begun, self._boot_timeout_s)
            if not self._restored:  # else they are the template's
                self._timeline.add_guest(answer.phases)
            if self.share is not None and not self._mounted:
                self._timeline.enter("mount the share")
                mount_share(self.agent, self._boot_timeout_s, plugged=self._restored)
            self._timeline.finish()
            self._facts["bufferzone.guest-kernel"] = answer.kernel[:128]
            self._facts["bufferzone.vmm"] = self._vmm.version
        except VmmError as error:
            waited = self._boot_timeout_s if error.code == "agent-timeout" else None
            self._fail(
                error
                if self._vmm_ended() or self.failure
                else self._vmm.failure(self._timeline.phase, waited_s=waited)
            )
        except BufferzoneError as error:
            self._fail(VmmError(f"{self._timeline.phase}: {error.message}", hint=error.hint, code=error.code))
        finally:
            try:
                self._then(self.failure is None)
            finally:
                self._ready.set()

    def mount_root(self, disk: RootDisk) -> None:
        """Give the guest the image it already has a device for, and have it mounted; raises what went
        wrong.
        """
        kind, fd = disk.image()
        self._vmm.insert_disk(agent.ROOT_DISK, fd)
        self.agent.call("Root", agent.RootRequest(kind=kind), Empty, timeout_s=self._boot_timeout_s)

    # ---- while it is up

    def serve_locks(self) -> None:
        """Hold locks of files in the share for the guest from now on; a second call changes nothing."""
        with self._lock:
            begun, self._locks_served = self._locks_served, True
        if not begun and self.share is not None:
            threading.Thread(
                target=locks.serve, args=(self.agent, self.share), name="locks", daemon=True
            ).start()

    @property
    def vcpus(self) -> int:
        """CPUs of the VM."""
        return int(self._facts["bufferzone.vcpus"])

    @property
    def memory_mib(self) -> int:
        """Memory of the VM."""
        return int(self._facts["bufferzone.memory"])

    def facts(self) -> dict[str, str]:
        """What `state` tells of the sandbox, as annotations."""
        facts = dict(self._facts)
        if self.failure is not None:
            facts["bufferzone.failure"] = self.failure.message
        for name, packets in self.network.refused().items():
            facts[f"bufferzone.egress-{name}"] = str(packets)
        return facts

    def info(self) -> dict[str, Any]:
        """Everything known, for people; the keys are those of `wire.shim.InfoResponse`."""
        facts = {name.removeprefix("bufferzone."): value for name, value in self.facts().items()}
        return {
            "id": self.id,
            "accelerator": facts["accelerator"],
            "kvm": facts["kvm"],
            "kernel": facts.get("guest-kernel", ""),
            "image": facts["image"],
            "vcpus": int(facts["vcpus"]),
            "memory_mib": int(facts["memory"]),
            "start": facts["start"],
            "vmm": facts.get("vmm", ""),
            "failure": facts.get("failure", ""),
            "egress": facts.get("egress", ""),
            "egress_denied": int(facts.get("egress-denied", "0")),
            "egress_forged": int(facts.get("egress-forged", "0")),
            "vmm_pid": self._vmm.pid,
            "virtiofsd_pid": self._daemon.pid if self._daemon is not None else 0,
            "shim_pid": os.getpid(),
            "timeline": [list(mark) for mark in self._timeline.marks()],
        }

    def container_stopped(self, alone: bool) -> None:
        """A container's init is gone; when it was `alone`, the VM is of no more use and ends now."""
        if alone:
            with self._lock:
                self._stopping = True
            self._kill()

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
        watched = {self._vmm.fileno(): "vmm", self._wake_read: ""}
        if self._daemon is not None:
            watched[self._daemon.fileno()] = "virtiofsd"
        for fd in watched:
            poll.register(fd, select.POLLIN)
        timeout_ms: float | None = unused_s * 1000
        while not self._end:
            ready = poll.poll(timeout_ms)
            if not ready and unused():
                self.log("no container was created in this sandbox: ending")
                return
            timeout_ms = None
            for fd, _ in ready:
                if fd == self._wake_read:
                    os.read(fd, 64)
                else:
                    poll.unregister(fd)
                    self._helper_ended(watched[fd])

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
            status = self._daemon.wait_exit(0) if self._daemon is not None else None
            how = (
                f"was killed (signal {-status})"
                if status is not None and status < 0
                else f"ended with status {status}"
            )
            self._fail(VmmError(f"virtiofsd {how}: the sandbox lost its file system", code="virtiofsd-died"))

    def _agent_broke(self, error: VmmError) -> None:
        """The channel is gone: because the VM is, or because the agent misbehaves; then the VM has to go."""
        with self._lock:
            if self._stopping or self.failure is not None:
                self.agent.lose(self.failure or error)
                return
        self._fail(self._vmm.failure(self._timeline.phase) if self._vmm_ended() else error)

    def _vmm_ended(self) -> bool:
        poll = select.poll()
        poll.register(self._vmm.fileno(), select.POLLIN)
        return bool(poll.poll(_SETTLE_S * 1000))

    def _fail(self, error: VmmError) -> None:
        with self._lock:
            if self.failure is None and not self._stopping:
                self.failure = error
                self.log(error.line())
        self._ready.set()
        self.agent.lose(self.failure or error)
        self._kill()

    def _kill(self) -> None:
        self._vmm.kill()
        if self._daemon is not None:
            self._daemon.kill()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # it is awake already
