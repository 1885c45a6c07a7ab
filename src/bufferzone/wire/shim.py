"""What our own commands ask a shim besides the Task API: service `bufferzone.shim.v1.Shim`."""

from __future__ import annotations

from bufferzone.wire import agent
from bufferzone.wire.proto import Empty, Message, blob, boolean, string, uint

SERVICE = "bufferzone.shim.v1.Shim"


class InfoResponse(Message):
    """`json` is one object: id, accelerator, kvm (policy), kernel (guest release), timeline [[phase, ms]],
    vmm (name and version), vmm_pid, virtiofsd_pid, shim_pid, image (digest), vcpus, memory_mib, start (warm
    or cold), failure, egress (the policy), egress_denied and egress_forged (packets it refused). What is not
    known yet is empty."""

    json: bytes = blob(1)


class OomRequest(Message):
    """Wait until the container has more out-of-memory kills than `seen`, at most `timeout_ms`."""

    id: str = string(1)
    seen: int = uint(2)
    timeout_ms: int = uint(3)


class OomResponse(Message):
    """How many there were; `ended`: the container has, so there will be no more."""

    count: int = uint(1)
    ended: bool = boolean(2)


#: method name -> (request, response). `Processes` is the guest's own process table of a container,
#: `Metrics` the guest cgroup's counters as the agent names them, `WaitOom` its out-of-memory kills.
METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "Processes": (agent.ProcessRef, agent.PidsResponse),
    "Info": (Empty, InfoResponse),
    "Metrics": (agent.ProcessRef, agent.StatsResponse),
    "WaitOom": (OomRequest, OomResponse),
}
