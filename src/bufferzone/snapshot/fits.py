"""Whether a checkpoint can be restored here for this bundle: its VM's shape, or why not."""

from __future__ import annotations

from bufferzone.errors import HostError
from bufferzone.snapshot import compatible
from bufferzone.vm.shape import unlike_here
from bufferzone.vm.size import size_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.config import Settings
    from bufferzone.oci import Spec
    from bufferzone.snapshot.checkpoint_dir import Checkpoint
    from bufferzone.vm.shape import VmShape


def shape_of(
    checkpoint: Checkpoint,
    settings: Settings,
    spec: Spec,
    root: str,
    log: Callable[[str], None],
    *,
    has_tap: bool,
    has_volumes: bool,
) -> VmShape:
    """The shape of a checkpoint's VM, if it can be had here with this bundle; raises `HostError`.

    `root` is where the probe of KVM is kept; `has_tap`: there is a back end for its NIC.
    """
    shape = checkpoint.shape
    size = size_for(spec.raw, spec.pod, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
    problem = ""
    if unlike := unlike_here(shape, settings, size, root, log):
        problem = str(unlike[0])
    elif shape.nic and not has_tap:
        problem = "its VM has a NIC, but this host cannot create one"
    elif spec.terminal != checkpoint.terminal:
        problem = f"process.terminal was {str(checkpoint.terminal).lower()} in the saved container"
    elif has_volumes:
        problem = "the bundle has volumes, but a checkpoint has none"
    elif differing := compatible.differences(checkpoint.spec, spec.raw):
        problem = f"config.json differs from that of the saved container: {', '.join(differing[:5])}"
    if problem:
        raise HostError(
            f"the checkpoint {checkpoint.directory} does not fit: {problem}", code="checkpoint-mismatch"
        )
    return shape
