"""What stands between a checkpoint and its VM that runs again: does it fit here, is it what was saved."""

from __future__ import annotations

from bufferzone.errors import HostError
from bufferzone.sandbox import plan, sources
from bufferzone.snapshot import compatible
from bufferzone.vm.shape import check_accelerator
from bufferzone.wire.agent import ROOT_DISK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.config import Settings
    from bufferzone.network import tcfilter
    from bufferzone.oci import Spec
    from bufferzone.snapshot.checkpoint_dir import Saved
    from bufferzone.vm.shape import Machine
    from bufferzone.vmm.interface import Vmm


def machine_of(
    restored: Saved,
    settings: Settings,
    spec: Spec,
    root: str,
    log: Callable[[str], None],
    tap: tcfilter.Tap | None,
) -> Machine:
    """The machine of a checkpoint, if it can be had here with this bundle; raises `HostError`."""
    machine = restored.machine
    check_accelerator(machine, settings, root, log)
    size = plan.plan_vm(spec.raw, spec.pod, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
    problem = ""
    if not _is_within(machine, size):
        problem = (
            f"its VM has {machine.memory_mib} MiB and {machine.vcpus} CPUs; this bundle allows at most"
            f" {size.memory_mib} and {size.vcpus}"
        )
    elif machine.nic and tap is None:
        problem = "its VM has a NIC, but this host cannot create one"
    elif spec.terminal != restored.terminal:
        problem = f"process.terminal was {str(restored.terminal).lower()} in the saved container"
    elif sources.needs_share(spec):
        problem = "the bundle has volumes, but a checkpoint has none"
    elif differing := compatible.differences(restored.spec, spec.raw):
        problem = f"config.json differs from that of the saved container: {', '.join(differing[:5])}"
    if problem:
        raise HostError(
            f"the checkpoint {restored.directory} does not fit: {problem}", code="checkpoint-mismatch"
        )
    return machine


def _is_within(machine: Machine, size: plan.VmPlan) -> bool:
    """Whether a checkpoint, which may come from elsewhere, asks for no more than its bundle would get."""
    wishes = (machine.memory_mib, machine.vcpus)
    return all(type(wish) is int and wish > 0 for wish in wishes) and (
        machine.memory_mib <= size.memory_mib and machine.vcpus <= size.vcpus
    )


def revive(restored: Saved, vmm: Vmm, memory_fd: int) -> None:
    """Before the guest of a checkpoint runs on: its memory is what was saved, its disk is back."""
    restored.check_memory(memory_fd)
    vmm.insert_disk(ROOT_DISK, restored.disk_fd)
