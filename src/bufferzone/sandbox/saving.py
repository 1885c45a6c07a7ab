"""Saves the VM of a sandbox with its container, which goes on or ends with it."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext

from bufferzone.errors import StateError
from bufferzone.snapshot import compatible, seal
from bufferzone.snapshot.checkpoint import Capture
from bufferzone.vm.agent_client import if_alive
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bufferzone.sandbox.container import Container
    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.vm.agent_client import AgentClient


def save(
    sandbox: Sandbox,
    container: Container,
    directory: str,
    *,
    frozen: bool,
    ended: Callable[[], None] | None,
) -> None:
    """Save the VM with the container, which goes on as it was unless `ended` is given, or on failure.

    `ended` is called once the checkpoint is complete; it has to end the VM.
    """
    if sandbox.start.kind == "pool":
        raise StateError("its VM came from the pool", code="not-saveable")
    capture = Capture(sandbox.vm, sandbox.network, sandbox.disk)
    capture.check()
    facts = {
        "container": container.id,
        "terminal": bool(container.spec["process"].get("terminal")),
        "spec": compatible.parts(container.spec),
        "created": time.time_ns(),
    }
    still = nullcontext() if frozen else _frozen(sandbox.agent, agent.ProcessRef(id=container.id))
    capture.save(directory, facts, seal.key(sandbox.start.settings), still=still, ended=ended)
    if ended is None:
        sandbox.log(f"saved: the VM was stopped for {capture.stopped_s * 1000:.0f} ms")


@contextmanager
def _frozen(client: AgentClient, ref: agent.ProcessRef) -> Iterator[None]:
    client.call("Pause", ref, Empty)
    try:
        yield
    finally:
        with if_alive():  # it may have ended with the checkpoint
            client.call("Resume", ref, Empty)
