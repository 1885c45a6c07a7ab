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
    from bufferzone.sandbox.agent import AgentClient, Pending

#: how long a guest may take to find a device that was plugged while it was stopped: about 50 ms under TCG
_PLUG_S = 10.0
#: a wall clock that is found to be ahead by more is set again, so many times
_CLOCK_NS, _CLOCK_ROUNDS = 5_000_000, 4


def say_hello(client: AgentClient, hostname: str, timeout_s: float) -> agent.HelloResponse:
    """Give the guest fresh randomness, a name and the time. Nothing of a container runs before.

    Raises `VmmError` when it does not answer within `timeout_s`.
    """
    return be_greeted(client, begin_hello(client, hostname, timeout_s), timeout_s)


def begin_hello(client: AgentClient, hostname: str, timeout_s: float) -> Pending:
    """The first half of `say_hello`: the guest works while we do something else."""
    hello = agent.HelloRequest(entropy=os.urandom(64), hostname=hostname[:63])
    return client.send(("Hello", hello), timeout_s=timeout_s)[0]


def be_greeted(client: AgentClient, begun: Pending, timeout_s: float) -> agent.HelloResponse:
    """The second half."""
    answer = begun.result(agent.HelloResponse)
    _set_clock(client, _offset_ns(answer.monotonic_ns, begun.arrived_ns), timeout_s)
    return answer


def _offset_ns(monotonic_ns: int, now_ns: int) -> int:
    """Wall clock minus the guest's monotonic clock: too much by the answer's way back."""
    return now_ns - min(monotonic_ns, 1 << 62)  # whatever a guest says fits the message


def _set_clock(client: AgentClient, offset_ns: int, timeout_s: float) -> None:
    """The way back takes milliseconds, on a busy machine many more: the quickest of some answers counts."""
    for _ in range(_CLOCK_ROUNDS):
        clock = agent.ClockRequest(offset_ns=offset_ns)
        answer = client.call("Clock", clock, agent.ClockResponse, timeout_s=timeout_s)
        closer_ns = _offset_ns(answer.monotonic_ns, time.time_ns())
        if closer_ns > offset_ns - _CLOCK_NS:
            return
        offset_ns = closer_ns


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
