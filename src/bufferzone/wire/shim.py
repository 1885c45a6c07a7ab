"""What our own commands ask a shim besides the Task API: service `bufferzone.shim.v1.Shim`."""

from __future__ import annotations

from bufferzone.wire import agent, task
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


class RunResponse(Message):
    """How an exec ended: `exit_status` 0-255 (128+n for signal n), `signal` n or 0, `oom` when it was for
    want of memory. `cpu_us` and `peak_bytes` (0: not known) are what it and all it started have used;
    `start_us` and `run_us` how long its start took, and the time from then to its end.
    """

    exit_status: int = uint(1)
    signal: int = uint(2)
    oom: bool = boolean(3)
    cpu_us: int = uint(4)
    peak_bytes: int = uint(5)
    start_us: int = uint(6)
    run_us: int = uint(7)


#: method name -> (request, response). `Run` is Exec, Start, Wait and Delete in one; `Result` Wait and Delete
#: of an exec that was started; `Usage` what one has used by now. `Processes` is the guest's own process table
#: of a container, `Metrics` the guest cgroup's counters as the agent names them, `WaitOom` its out-of-memory
#: kills.
METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "Processes": (agent.ProcessRef, agent.PidsResponse),
    "Info": (Empty, InfoResponse),
    "Metrics": (agent.ProcessRef, agent.StatsResponse),
    "WaitOom": (OomRequest, OomResponse),
    "Run": (task.ExecProcessRequest, RunResponse),
    "Result": (agent.ProcessRef, RunResponse),
    "Usage": (agent.ProcessRef, agent.UsageResponse),
}
