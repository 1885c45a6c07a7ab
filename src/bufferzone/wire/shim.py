"""What our own commands ask a shim besides the Task API: service `bufferzone.shim.v1.Shim`."""

from __future__ import annotations

from bufferzone.wire import agent
from bufferzone.wire.proto import Empty, Message, blob

SERVICE = "bufferzone.shim.v1.Shim"


class InfoResponse(Message):
    """`json` is one object: id, accelerator, kvm (policy), kernel (guest release), timeline [[phase, ms]],
    vmm (name and version), vmm_pid, virtiofsd_pid, shim_pid, image (digest), vcpus, memory_mib, start (warm
    or cold), failure. What is not known yet is empty."""

    json: bytes = blob(1)


#: method name -> (request, response). `Processes` is the guest's own process table of a container,
#: `Metrics` the guest cgroup's counters as the agent names them.
METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "Processes": (agent.ProcessRef, agent.PidsResponse),
    "Info": (Empty, InfoResponse),
    "Metrics": (agent.ProcessRef, agent.StatsResponse),
}
