"""How a sandbox comes up: `boot` reads as the whole story, `Sandbox` is what is up then.

Everything is forked before the first thread starts, from fds we own, and is given back in reverse by one exit
stack. What would outlive a killed shim is written to leftovers.json before the next step.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager

from bufferzone import egress, jail, recorder, state
from bufferzone.oci import host
from bufferzone.sandbox import limits, plan, rootdisk
from bufferzone.sandbox.facts import facts_of
from bufferzone.sandbox.network import TapNetwork
from bufferzone.sandbox.origin import NewVm, RestoredVm
from bufferzone.sandbox.sandbox import HostSide, Sandbox
from bufferzone.sandbox.user_network import Link, UserNetwork
from bufferzone.storage import share
from bufferzone.vm.launch import VmLauncher, make_directory
from bufferzone.vm.leftovers import Leftovers
from bufferzone.vm.timeline import Timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bufferzone.config import Settings
    from bufferzone.network.tcfilter import Tap
    from bufferzone.oci import Spec
    from bufferzone.recorder.journal import Journal
    from bufferzone.sandbox.networks import Network
    from bufferzone.sandbox.sandbox import Start
    from bufferzone.snapshot.checkpoint_dir import Checkpoint
    from bufferzone.vm.group import Group
    from bufferzone.vm.launch import RunningVm

_SILENT = recorder.Silent()


@contextmanager
def boot(
    container_id: str,
    spec: Spec,
    directory: str,
    log: Callable[[str], None],
    checkpoint: Checkpoint | None = None,
    *,
    systemd: bool = False,
) -> Iterator[Sandbox]:
    """Start the VM for `spec`'s sandbox and yield it, booting still; on leaving, nothing of it is left.

    With `checkpoint` the VM is that one's, with its container. `directory` is the state directory. `systemd`:
    see `vm.group.group_of`. Raises `CallerError` for wishes that cannot be met, else `HostError` or
    `VmmError`. One thread only.
    """
    timeline, left = Timeline(), Leftovers(directory)
    settings = host.settings_of(spec)
    host.check_network(spec.raw, settings)
    wish = NewVm(spec, settings, log) if checkpoint is None else RestoredVm(checkpoint, spec, settings, log)
    cgroup = limits.cgroup_of(spec.raw, container_id, systemd=systemd)
    with ExitStack() as stack:
        tap = wish.park()
        planned = wish.plan(stack, os.path.dirname(directory), tap)
        _join(stack, cgroup, left, log)
        share.own_namespace()
        uids = stack.enter_context(jail.allocate_uid(state.lease_root()))
        disk = planned.open_disk(stack, uids.helper)
        tree = stack.enter_context(share.Tree(make_directory(directory, "share"))) if wish.shares else None
        link = Link(stack, settings, directory, uids.helper, left.add_process) if wish.passt else None
        back_end = link or tap
        launcher = VmLauncher(
            container_id,
            planned.shape,
            directory,
            uids=uids,
            tree=tree,
            nic_fd=back_end.fd if back_end else -1,
            open_files=settings.open_files,
            timeline=timeline,
            record=left.add_process,
            record_name=left.add_link,
            disks=rootdisk.directory_of(wish.settings),
            answer_s=wish.settings.boot_timeout_s,
            rates=plan.rates_of(wish.settings),
        )
        vm, start = planned.launch(stack, launcher)
        records = recorder.of(wish.settings, container_id)
        network = connect(stack, vm, left, wish.settings, tap, link, records)
        resources = HostSide(
            network=network,
            disk=disk,
            cgroup=cgroup,
            left=left,
            timeline=timeline,
            log=log,
            recorder=records,
        )
        yield assemble(stack, container_id, vm, resources, start)


def _join(stack: ExitStack, cgroup: Group, left: Leftovers, log: Callable[[str], None]) -> None:
    if cgroup:
        cgroup.check(log)
        stack.callback(cgroup.begin((os.getpid(),), left))


def connect(
    stack: ExitStack,
    vm: RunningVm,
    left: Leftovers,
    settings: Settings,
    tap: Tap | None,
    link: Link | None = None,
    records: Journal | recorder.Silent = _SILENT,
) -> Network:
    """The network behind the back end of the VM's NIC, which is one of both; `stack` closes it, `records` is
    told what changes.
    """
    rules = None if link else egress.policy(settings.egress)  # passt's is its frame filter's
    taps = TapNetwork(tap, vm.vmm, vm.agent, left.add_network, rules, records)
    network = UserNetwork(link, vm.agent, taps) if link else taps
    stack.callback(network.close)
    return network


def assemble(
    stack: ExitStack, container_id: str, vm: RunningVm, resources: HostSide, start: Start
) -> Sandbox:
    """The sandbox of a VM that was started, however that was; `stack` closes it."""
    sandbox = Sandbox(container_id, vm, resources, start, facts_of(start.settings, vm.shape, start.kind))
    stack.callback(sandbox.close)
    return sandbox
