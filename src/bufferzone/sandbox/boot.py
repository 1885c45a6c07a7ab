"""Carries out a plan: `boot` reads as the whole story of how a sandbox comes up, `Sandbox` is what is up
then.

Everything is forked before the first thread starts, from fds we own, and is given back in reverse by one exit
stack. What would outlive a killed shim is written to leftovers.json before the next step.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from bufferzone import jail, state
from bufferzone.errors import HostError, VmmError
from bufferzone.guestimage import template_store
from bufferzone.model import Confinement
from bufferzone.network import tcfilter
from bufferzone.oci import host
from bufferzone.sandbox import limits, plan, rootdisk, sources, user_network
from bufferzone.sandbox.sandbox import Sandbox
from bufferzone.snapshot import restore, template
from bufferzone.snapshot.checkpoint import Capture
from bufferzone.storage import ram, share, virtiofs
from bufferzone.vm import cgroups
from bufferzone.vm.agent_client import AgentClient
from bufferzone.vm.leftovers import Leftovers
from bufferzone.vm.shape import describe, spec_of, template_key
from bufferzone.vm.timeline import Timeline
from bufferzone.vmm import console, drivers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bufferzone.config import Settings
    from bufferzone.errors import BufferzoneError
    from bufferzone.model import Share, VmSpec
    from bufferzone.oci import Spec
    from bufferzone.sandbox.plan import VmPlan
    from bufferzone.snapshot import checkpoint_dir
    from bufferzone.spawn import Child
    from bufferzone.vm.shape import Machine
    from bufferzone.vmm.interface import Vmm


@contextmanager
def boot(
    container_id: str,
    spec: Spec,
    directory: str,
    log: Callable[[str], None],
    restored: checkpoint_dir.Saved | None = None,
) -> Iterator[Sandbox]:
    """Start the VM for `spec`'s sandbox and yield it, booting still; on leaving, nothing of it is left.

    With `restored` the VM is that of a checkpoint, with its container. `directory` is the state directory.
    Raises `CallerError` for wishes that cannot be met, else `HostError` or `VmmError`. One thread only.
    """
    timeline = Timeline()
    settings = host.settings_of(spec)
    host.check_network(spec.raw, settings)
    settings, shares = _choose(rootdisk.settle(settings, spec), spec, restored)
    size = plan.plan_vm(spec.raw, spec.pod, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
    cgroup = limits.cgroup_of(spec.raw, container_id)
    with ExitStack() as stack:
        user = user_network.wanted(spec.raw, settings, restored)
        tap = None if user or (restored is not None and not restored.machine.nic) else park(log)
        if restored is None:
            machine = _machine(settings, size, os.path.dirname(directory), log, tap, user)
        else:
            machine = restore.machine_of(restored, settings, spec, os.path.dirname(directory), log, tap)
        warm = _Warm(stack, machine, settings, log) if restored is None else None
        left = Leftovers(directory)
        _join(stack, cgroup, left, log)
        share.own_namespace()
        uids = stack.enter_context(jail.allocate_uid(state.lease_root()))
        disk = rootdisk.open_root(stack, settings, spec, restored, uid=uids.helper)
        tree = _share(stack, directory) if shares else None
        link = user_network.Link(stack, settings, directory, uids.helper, left.add_process) if user else tap
        starter = Starter(container_id, machine, directory, uids, tree, left, timeline, link, settings)
        started = _start(stack, starter, warm, restored)
        agent_client = AgentClient(started.vmm.agent)
        network = user_network.of(stack, link, started.vmm, agent_client, left.add_network, settings.egress)
        sandbox = Sandbox(
            container_id,
            vmm=started.vmm,
            daemon=started.daemon,
            daemon_log=starter.daemon_log,
            share=tree,
            disk=disk,
            agent_client=agent_client,
            network=network,
            capture=Capture(started.vmm, agent_client, network, machine, starter.memory_fd, disk, tree),
            adopts="" if restored is None else restored.container,
            timeline=timeline,
            cgroup=cgroup,
            left=left,
            boot_timeout_s=settings.boot_timeout_s,
            facts=facts_of(settings, machine, started.start if restored is None else "restored"),
            log=log,
            restored=started.restored,
            then=(lambda well: None) if warm is None else warm.boot_ended,
        )
        stack.callback(sandbox.close)
        yield sandbox


def _choose(settings: Settings, spec: Spec, restored: checkpoint_dir.Saved | None) -> tuple[Settings, bool]:
    """The settings as far as the VMM can follow them, and whether the guest gets a share."""
    shares = (restored is None and settings.rootfs != "block") or sources.needs_share(spec)
    features = drivers.find(settings.vmm).FEATURES
    return plan.within_features(settings, features, shares=shares, restored=restored is not None), shares


def _join(stack: ExitStack, cgroup: str, left: Leftovers, log: Callable[[str], None]) -> None:
    if not cgroup:
        return
    if others := cgroups.claim(cgroup):
        log(f"container's cgroup is not empty: {others} process(es) found: its limits stay as they are")
    joined = cgroups.join(cgroup, os.getpid())
    stack.callback(cgroups.leave_and_remove, joined, os.getpid())
    left.add_cgroups(joined)


def _share(stack: ExitStack, directory: str) -> share.Tree:
    return stack.enter_context(share.Tree(make_directory(directory, "share")))


def _machine(
    settings: Settings,
    size: VmPlan,
    root: str,
    log: Callable[[str], None],
    tap: tcfilter.Tap | None,
    user: bool,
) -> Machine:
    return replace(describe(settings, size, root, log, nic=user or tap is not None), user_network=user)


def _start(
    stack: ExitStack, starter: Starter, warm: _Warm | None, restored: checkpoint_dir.Saved | None
) -> Started:
    """Start the VM: a new one, or that of a checkpoint."""
    if restored is not None:
        return starter.restore(stack, restored, partial(restore.revive, restored))
    assert warm is not None
    started = starter.start(stack, warm)
    warm.let_go()
    return started


def park(log: Callable[[str], None]) -> tcfilter.Tap | None:
    """The tap of the VM's NIC; without one the VM has none, which only a container with a network misses."""
    try:
        return tcfilter.park()
    except HostError as error:
        log(f"the VM gets no NIC: {error.line()}")
        return None


class _Warm:
    """The template of this shape, if there is one; else who makes it once this boot is done."""

    def __init__(
        self, stack: ExitStack, machine: Machine, settings: Settings, log: Callable[[str], None]
    ) -> None:
        self.template: template_store.Template | None = None
        self._maker: template.Maker | None = None
        self._came_from = ""
        self._log = log
        self._store = template_store.default_store(settings.image_store)
        if not settings.templates or os.geteuid() != 0:
            return
        key = template_key(machine)
        try:
            self.template = template_store.open_template(self._store, key)
        except HostError as error:
            log(error.line())
            template_store.remove(self._store, key)
        if self.template is not None:
            stack.callback(self.let_go)
        else:
            # started now, so that it is in the caller's cgroup and namespaces and not in the container's
            try:
                self._maker = template.Maker(machine, self._store, state.lease_root())
            except OSError as error:
                log(f"no template will be made: {error.strerror}: {error.filename or self._store}")
            else:
                stack.callback(self._maker.cancel)

    def refused(self, error: BufferzoneError) -> None:
        """The template does not work: one warning, and it is made again after the next cold boot."""
        self._log(f"booting cold, the template is of no use: {error.line()}")
        if self.template is not None:
            template_store.remove(self._store, self.template.key)
            self.template.close()
            self.template = None

    def let_go(self) -> None:
        """The template was copied: one that is removed now gives its space back."""
        if self.template is not None:
            self._came_from = self.template.key
            self.template.close()
            self.template = None

    def boot_ended(self, well: bool) -> None:
        """Let the maker begin. A template whose guest did not wake is removed, and made anew by and by."""
        if well and self._maker is not None:
            self._maker.go()
        if not well and self._came_from:
            self._log("the template is removed: its guest did not wake")
            template_store.remove(self._store, self._came_from)


class Started:
    """A VMM and its virtiofsd, just started or restored."""

    def __init__(self, vmm: Vmm, daemon: Child | None, *, restored: bool) -> None:
        self.vmm, self.daemon, self.restored = vmm, daemon, restored
        self.start = "warm" if restored else "cold"


class Starter:
    """Starts virtiofsd and the VMM, restored from the template where there is one, else cold."""

    def __init__(
        self,
        name: str,
        machine: Machine,
        directory: str,
        uids: jail.UidLease,
        tree: share.Tree | None,
        left: Leftovers,
        timeline: Timeline,
        tap: tcfilter.Tap | user_network.Link | None,
        settings: Settings,
    ) -> None:
        self._open_files = settings.open_files
        self._tap = -1 if tap is None else tap.fd
        self._name, self._machine, self._directory = name, machine, directory
        self._driver = drivers.find(machine.vmm)
        self._uids, self._tree, self._left, self._timeline = uids, tree, left, timeline
        self.daemon_log: console.Reader | None = None
        self.memory_fd = -1

    def start(self, stack: ExitStack, warm: _Warm) -> Started:
        """Start; what it takes is given back by `stack`. A template that fails is worth one warning."""
        if warm.template is not None:
            try:
                with ExitStack() as attempt:
                    started = self.restore(attempt, warm.template)
                    stack.push(attempt.pop_all())
                    return started
            except (VmmError, HostError) as error:
                warm.refused(error)
        return self._cold(stack)

    def _cold(self, stack: ExitStack) -> Started:
        daemon, shared = self._virtiofsd(stack)
        memory = self._memory(stack)[0] if self._machine.block else ""  # a file can be saved
        vm = spec_of(self._machine, self._name, shares=shared, memory=memory, tap=self._tap)
        vmm = self._vmm(stack, self._driver.start, vm)
        self._timeline.enter("boot the guest")
        return Started(vmm, daemon, restored=False)

    def restore(
        self,
        stack: ExitStack,
        found: template_store.Template | checkpoint_dir.Saved,
        before: Callable[[Vmm, int], None] = lambda vmm, memory_fd: None,
    ) -> Started:
        """Start from a saved VM, the guest running when this returns; raises `VmmError` or `HostError`.

        `before` gets the VMM and the memory's descriptor just before the guest runs.
        """
        daemon, shared = self._virtiofsd(stack)
        memory, memory_fd = self._memory(stack)
        carries = isinstance(found, template_store.Template) and bool(found.meta.get(template_store.SHARE))
        vm = spec_of(
            self._machine, self._name, shares=shared, memory=memory, carries_share=carries, tap=self._tap
        )
        vmm = self._vmm(stack, self._driver.restore, vm)
        self._timeline.enter("copy memory")  # while the VMM starts
        ram.copy(found.memory_fd, memory_fd)
        what = "load the template" if isinstance(found, template_store.Template) else "load the checkpoint"
        self._timeline.enter(what)
        vmm.greet()
        try:
            vmm.load(found.state_fd)
        except VmmError as error:
            vmm.watch()  # reads what it said; the threads are gone before something is forked again
            raise vmm.failure(what) from error
        before(vmm, memory_fd)
        for one in () if carries else shared:
            vmm.plug_share(one)
        vmm.resume()
        self._timeline.enter("wake the guest")
        return Started(vmm, daemon, restored=True)

    def _memory(self, stack: ExitStack) -> tuple[str, int]:
        """The guest's memory as a file: (path, descriptor)."""
        size = self._machine.memory_mib << 20
        memory, fd = ram.make_file(make_directory(self._directory, "memory"), size, self._uids.vmm)
        stack.callback(os.close, fd)
        self.memory_fd = fd
        return memory, fd

    def _virtiofsd(self, stack: ExitStack) -> tuple[Child | None, tuple[Share, ...]]:
        if self._tree is None:
            return None, ()
        self._timeline.enter("start virtiofsd")
        # through a pipe, since a guest can make it complain without end and the state directory is memory
        read_end, log_fd = os.pipe2(os.O_CLOEXEC)
        kept = console.BoundedLog(console.open_file(os.path.join(self._directory, "virtiofsd.log")))
        self.daemon_log = console.Reader("virtiofsd", read_end, kept)
        try:
            uid = self._uids.helper
            daemon, shared = virtiofs.start(
                self._tree.fd,
                self._directory,
                uid=uid,
                gid=uid,
                log_fd=log_fd,
                open_files=self._open_files,
            )
        finally:
            os.close(log_fd)
        stack.enter_context(daemon)
        stack.callback(os.close, shared.fd)
        self._left.add_process(daemon.pid)
        return daemon, (shared,)

    def _vmm(self, stack: ExitStack, make: Callable[..., Vmm], spec: VmSpec) -> Vmm:
        self._timeline.enter(f"start {self._driver.FEATURES.label}")
        confinement = Confinement(uid=self._uids.vmm, gid=self._uids.vmm)
        log_fd = console.open_file(os.path.join(self._directory, "console.log"))
        vmm = make(spec, confinement, console_log_fd=log_fd)
        stack.callback(vmm.close)
        self._left.add_process(vmm.pid)
        return vmm


def facts_of(settings: Settings, machine: Machine, start: str) -> dict[str, str]:
    """What `state` tells of a sandbox; `start` is cold, warm, pool or restored."""
    policy = {"bufferzone.egress": " ".join(settings.egress)} if settings.egress else {}
    return policy | {
        "bufferzone.accelerator": machine.accelerator,
        "bufferzone.kvm": settings.kvm,
        "bufferzone.image": machine.image.digest,
        "bufferzone.vcpus": str(machine.vcpus),
        "bufferzone.memory": str(machine.memory_mib),
        "bufferzone.rootfs": "block" if machine.block else "virtiofs",
        "bufferzone.start": start,
    }


def make_directory(parent: str, name: str) -> str:
    """PARENT/NAME, made where it is missing, for helpers to pass through; raises `HostError`."""
    path = os.path.join(parent, name)
    try:
        os.makedirs(path, 0o711, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot create {path}: {error.strerror}", code="state-dir") from error
    return path
