"""Which accelerator a VM gets: the `kvm` setting applied to what the probe found. Pure."""

from __future__ import annotations

from bufferzone.errors import HostError, UsageError
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.linux.kvm import Probe

POLICIES = ("require", "warn", "allow")
#: what runs a guest that is no machine
NONE = "none"


class Accelerator(Record):
    """`name` is `kvm` or `tcg`; `warning` is empty or one line for the user; `reason` is why not KVM."""

    name: str
    warning: str = ""
    reason: str = ""


def policy_met(name: str) -> str:
    """The strictest policy that an accelerator satisfies."""
    return "require" if name == "kvm" else "warn"


def choose(policy: str, probe: Probe) -> Accelerator:
    """KVM where it works; else by policy: `require` raises HostError, `warn` says so, `allow` is silent."""
    if policy not in POLICIES:
        raise UsageError(f"unknown kvm policy: {policy}", hint=f"one of {', '.join(POLICIES)}")
    if probe.usable:
        return Accelerator(name="kvm")
    if policy == "require":
        raise HostError(
            f"KVM is required but not usable: {probe.reason}",
            hint="enable virtualization in firmware, or nesting in the hypervisor, or set kvm to warn",
            code="kvm-required",
        )
    if policy == "allow":
        return Accelerator(name="tcg", reason=probe.reason)
    warning = (
        f"no usable KVM ({probe.reason}): running under TCG, which is slow and which QEMU does not call "
        "a security boundary"
    )
    return Accelerator(name="tcg", warning=warning, reason=probe.reason)
