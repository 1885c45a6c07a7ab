"""What is known of a sandbox, as a value: `state` tells it as annotations, `bz ps` and others as fields."""

from __future__ import annotations

from bufferzone.record import Record
from bufferzone.vmm import drivers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.config import Settings
    from bufferzone.vm.shape import VmShape

PREFIX = "bufferzone."
#: what is said of a sandbox that is none
NO_WALL = "none: there is no VM, the container runs on the host's kernel"


class Facts(Record):
    """`start` is cold, warm, pool or restored. `guest_kernel` and `vmm` are empty until the guest answered.

    `wall` is said only where there is none.
    `failure` is why the sandbox ended, empty while it did not; `egress` the policy's rules, `refused` the
    packets that it refused so far, by reason.
    """

    start: str
    accelerator: str
    kvm: str
    image: str
    vcpus: int
    memory_mib: int
    rootfs: str
    egress: tuple[str, ...] = ()
    wall: str = ""
    guest_kernel: str = ""
    vmm: str = ""
    failure: str = ""
    refused: tuple[tuple[str, int], ...] = ()

    def to_annotations(self) -> dict[str, str]:
        """The facts by the names that `state` has for them; without those that nothing is known of."""
        values = {
            "accelerator": self.accelerator,
            "kvm": self.kvm,
            "image": self.image,
            "vcpus": str(self.vcpus),
            "memory": str(self.memory_mib),
            "rootfs": self.rootfs,
            "start": self.start,
            "egress": " ".join(self.egress),
            "wall": self.wall,
            "guest-kernel": self.guest_kernel,
            "vmm": self.vmm,
            "failure": self.failure,
            **{f"egress-{name}": str(packets) for name, packets in self.refused},
        }
        return {PREFIX + name: value for name, value in values.items() if value}


def facts_of(settings: Settings, shape: VmShape, start: str) -> Facts:
    """The facts of a sandbox whose VM has this shape, as far as they are known when it starts."""
    return Facts(
        start=start,
        accelerator=shape.accelerator,
        kvm=settings.kvm,
        image=shape.image.digest,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        rootfs="block" if shape.block else "virtiofs",
        egress=tuple(settings.egress),
        wall="" if drivers.find(shape.vmm).FEATURES.wall else NO_WALL,
    )
