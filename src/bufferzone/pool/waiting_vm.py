"""A VM that waits for a container: restored, awake, its share mounted, rehearsed, and then frozen.

`prepare` makes one, in a process with one thread and a mount namespace of its own. Whoever takes it lets that
process `enter` the caller's mount namespace, so that every path means from then on what it means to the
caller; the shared tree comes along. After `give` it is a `Sandbox` like any other.
"""

from __future__ import annotations

import os
import select
from contextlib import ExitStack, contextmanager
from functools import partial

from bufferzone import jail, recorder, state
from bufferzone.errors import HostError, VmmError
from bufferzone.guestimage import template_store
from bufferzone.linux import process
from bufferzone.pool import warmup
from bufferzone.record import replace
from bufferzone.sandbox import limits
from bufferzone.sandbox.boot import assemble, connect
from bufferzone.sandbox.sandbox import HostSide, Start
from bufferzone.storage import share
from bufferzone.vm import cgroups
from bufferzone.vm import nic as nics
from bufferzone.vm.hello import begin_hello, mount_share, say_hello
from bufferzone.vm.launch import VmLauncher, make_directory
from bufferzone.vm.leftovers import Leftovers
from bufferzone.vm.shape import describe, template_key, unlike_new
from bufferzone.vm.size import VmSize, size_for
from bufferzone.vm.timeline import Timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.network.tcfilter import Tap
    from bufferzone.oci import Spec
    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.vm.fit import Difference
    from bufferzone.vm.group import Group
    from bufferzone.vm.launch import RunningVm
    from bufferzone.vm.shape import VmShape

_ANSWER_S = 30.0
_LOGS = ("shim.log", "console.log", "virtiofsd.log")


def sized(settings: Settings, spec: dict[str, Any], pod: Mapping[str, str]) -> Settings:
    """`settings` with the VM's size for `spec`, of which the limits may be all there is, and its pod."""
    size = size_for(spec, pod, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
    return settings.with_values(vcpus=size.vcpus, memory_mib=size.memory_mib)


def _shape(settings: Settings, root: str, log: Callable[[str], None], *, nic: bool) -> VmShape:
    size = VmSize(vcpus=settings.vcpus, memory_mib=settings.memory_mib)
    return describe(settings, size, root, log, nic=nic)


@contextmanager
def prepare(settings: Settings, directory: str, root: str, log: Callable[[str], None]) -> Iterator[WaitingVm]:
    """Yield a frozen VM of the size that `settings` say; on leaving, nothing of it is left.

    `directory` is an empty one of its own, `root` the state root of those who may take it. Raises `HostError`
    (`no-template` where there is none yet), `VmmError` or `GuestError`. The process must have one thread
    only.
    """
    if settings.rootfs != "virtiofs":
        raise HostError("only VMs that share their root file system can wait", code="pool-block")
    tap = nics.park(log)
    shape = _shape(settings, root, log, nic=tap is not None)
    store = template_store.default_store(settings.image_store)
    found = template_store.open_template(store, template_key(shape))
    if found is None:
        raise HostError("there is no template of this shape yet", code="no-template")
    with ExitStack() as stack:
        later = stack.enter_context(ExitStack())  # what a claim adds is given back after the VM is gone
        share.own_namespace()
        uids = stack.enter_context(jail.allocate_uid(state.lease_root()))
        tree = stack.enter_context(share.Tree(make_directory(directory, "share")))
        launcher = VmLauncher(
            "pool",
            shape,
            directory,
            uids=uids,
            tree=tree,
            nic_fd=-1 if tap is None else tap.fd,
            open_files=settings.open_files,
            timeline=Timeline(),
            record=Leftovers(directory).add_process,
        )
        try:
            vm = launcher.restore(stack, found)
        finally:
            found.close()
        _warm_up_and_stop(vm, tree, directory)
        yield WaitingVm(vm, tree, tap, (stack, later), (directory, root), log)


def _warm_up_and_stop(vm: RunningVm, tree: share.Tree, directory: str) -> None:
    """Wake the guest, run a first container in it, stop it."""
    say_hello(vm.agent, "pool", _ANSWER_S)
    mount_share(vm.agent, _ANSWER_S, plugged=True)
    warmup.run_first_container(vm.agent, tree, directory)
    warmup.warm_host()
    vm.vmm.stop()


class WaitingVm:
    """What `prepare` made: still to be watched by its owner, who gives it away or lets it go."""

    def __init__(
        self,
        vm: RunningVm,
        tree: share.Tree,
        tap: Tap | None,
        stacks: tuple[ExitStack, ExitStack],
        places: tuple[str, str],
        log: Callable[[str], None],
    ) -> None:
        self._vm, self._tree, self._tap, self._log = replace(vm, share_mounted=True), tree, tap, log
        self._before, self._after = stacks  # given back before and after the VM is
        self._directory, self._root = places

    @property
    def helpers(self) -> tuple[int, ...]:
        """Pids of the VMM and virtiofsd."""
        return self._vm.pids

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that become readable when a helper has ended."""
        return self._vm.filenos

    def enter(self, mount_namespace: int) -> None:
        """Go where the caller is: a namespace like its own, with the shared tree, not mounted yet."""
        self._tree.lift()
        try:
            process.setns(mount_namespace, process.CLONE_NEWNS)
        except OSError as error:
            raise HostError(f"cannot enter the caller's mount namespace: {error.strerror}") from error
        share.own_namespace()

    def thaw(self, name: str) -> None:
        """Let the guest run and greet it; raises `VmmError` when it or a helper is gone. From now on we have
        threads.
        """
        self._vm.vmm.resume()
        self._vm.agent.start()
        self._vm = replace(self._vm, greeting=begin_hello(self._vm.agent, name, _ANSWER_S))
        poll = select.poll()
        for fd in self.filenos():
            poll.register(fd, select.POLLIN)
        if poll.poll(0):
            raise VmmError("the waiting VM has lost a helper", code="pool-died")

    def unlike(self, settings: Settings, spec: Spec) -> list[Difference]:
        """Where it is not the VM that would be made for `spec` now: with a newer image, kernel or size."""
        wanted = sized(settings, spec.raw, spec.pod)
        here = self._vm.shape
        return unlike_new(here, _shape(wanted, self._root, self._log, nic=here.nic))

    def give(
        self,
        container_id: str,
        spec: Spec,
        settings: Settings,
        directory: str,
        caller: int,
        makers: tuple[int, ...],
    ) -> Sandbox:
        """Make it the sandbox of a container: its state directory, its cgroup (or the caller's), its name.

        `makers` go to that cgroup, too, by pid. Raises `HostError`; the VM is of no more use then.
        """
        timeline = Timeline()
        left = Leftovers(directory)
        for pid in self.helpers:
            left.add_process(pid)
        cgroup = limits.cgroup_of(spec.raw, container_id)
        cgroup.check(self._log)
        here = cgroups.of_process(caller)
        self._tree.land(make_directory(directory, "share"))
        for name in _LOGS:
            os.rename(os.path.join(self._directory, name), os.path.join(directory, name))
        state.remove(self._directory)
        timeline.enter("wake the guest")
        records = recorder.of(settings, container_id)
        resources = HostSide(
            network=connect(self._before, self._vm, left, settings, self._tap, records=records),
            recorder=records,
            disk=None,
            cgroup=cgroup,
            left=left,
            timeline=timeline,
            log=self._log,
        )
        start = Start(
            kind="pool",
            settings=settings,
            finish=partial(self._join, cgroup, here, left, (os.getpid(), *self.helpers, *makers)),
        )
        return assemble(self._before, container_id, self._vm, resources, start)

    def _join(self, cgroup: Group, callers: str, left: Leftovers, pids: tuple[int, ...]) -> None:
        """Move to the container's cgroup, or to those of the caller: milliseconds that nobody waits for."""
        if not cgroup:
            cgroups.follow(callers, pids)
            return
        self._after.callback(cgroup.begin(pids, left))
