"""The first calls to a guest that runs: identity and clock, then its share. The same for every start."""

from __future__ import annotations

import os
import select
import time

from bufferzone.errors import GuestError
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.sandbox.agent import AgentClient

#: how long a guest may take to find a device that was plugged while it was stopped: about 50 ms under TCG
_PLUG_S = 10.0


def say_hello(client: AgentClient, hostname: str, timeout_s: float) -> agent.HelloResponse:
    """Give the guest fresh randomness, a name and the time. Nothing of a container runs before.

    Raises `VmmError` when it does not answer within `timeout_s`.
    """
    hello = agent.HelloRequest(entropy=os.urandom(64), hostname=hostname[:63])
    answer = client.call("Hello", hello, agent.HelloResponse, timeout_s=timeout_s)
    # taken at once: what lies between is the way back of the answer, a few milliseconds
    monotonic_ns = min(answer.monotonic_ns, 1 << 62)  # whatever a guest says fits the message
    clock = agent.ClockRequest(offset_ns=time.time_ns() - monotonic_ns)
    client.call("Clock", clock, Empty, timeout_s=timeout_s)
    return answer


def mount_share(client: AgentClient, timeout_s: float, *, plugged: bool) -> None:
    """Mount the share in the guest. One it was just given, `plugged`, it discovers at its own pace."""
    request = agent.MountRequest(kind="virtiofs", source=agent.SHARE_TAG, target=agent.SHARE_PATH)
    end = time.monotonic() + _PLUG_S
    while True:
        try:
            client.call("Mount", request, Empty, timeout_s=timeout_s)
            return
        except GuestError:
            if not plugged or time.monotonic() > end:
                raise
            select.select([], [], [], 0.005)
