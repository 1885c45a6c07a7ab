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
    from bufferzone.vm.agent_client import AgentClient, Pending

#: how long a guest may take to find a device that was plugged while it was stopped: about 50 ms under TCG
_PLUG_S = 10.0
#: a wall clock is right when it is ahead by less than the first, as far as an answer tells that took less
#: than the second; else it is set again, so many times
_CLOCK_NS, _WIDTH_NS, _CLOCK_ROUNDS = 5_000_000, 20_000_000, 8


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
    set_clock(client, timeout_s, begun.arrived_ns - _bounded(answer.monotonic_ns))
    return answer


def set_clock(client: AgentClient, timeout_s: float, offset_ns: int = 0) -> None:
    """Set the guest's wall clock. `offset_ns`: how far it is from the guest's monotonic one, as an answer
    that came tells, which is too much by its way back; 0: nothing is known.

    The way back takes milliseconds, on a busy machine many more: the quickest of some answers counts. How
    long a request with its answer took tells how wrong it may be. Raises as `call` does.
    """
    least = -1 << 62
    for _ in range(_CLOCK_ROUNDS):
        clock, asked_ns = agent.SetClockRequest(offset_ns=offset_ns), time.time_ns()
        answer = client.call("SetClock", clock, agent.SetClockResponse, timeout_s=timeout_s)
        monotonic_ns = _bounded(answer.monotonic_ns)
        least, most = max(least, asked_ns - monotonic_ns), time.time_ns() - monotonic_ns
        if offset_ns and most > offset_ns - _CLOCK_NS and offset_ns < least + _WIDTH_NS:
            return
        offset_ns = min(most, offset_ns or most)


def _bounded(guest_ns: int) -> int:
    return min(guest_ns, 1 << 62)  # whatever a guest says fits the message


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
