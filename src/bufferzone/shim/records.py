"""What a shim tells the flight recorder beside the events of tasks: begin and end of the sandbox, refused
requests, packets that the egress policy refused. Does nothing where the setting is off.
"""

from __future__ import annotations

import threading

from bufferzone import config, recorder
from bufferzone.errors import BufferzoneError
from bufferzone.log import passing_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.sandbox.sandbox import Sandbox

#: how often the counters of an egress policy are read: a refused packet is recorded that late at most
_LOOK_S = 5.0
_FACTS = ("start", "accelerator", "vmm", "image", "vcpus", "memory_mib", "kernel", "failure")
_REFUSED = ("egress_denied", "egress_forged")


def telling(sandbox: Sandbox, log: Callable[[str], None]) -> Callable[[str], None]:
    """`log`, or one that records what is logged as well: requests that were refused."""
    if not sandbox.recorder.on:
        return log

    def tell(text: str) -> None:
        log(text)
        sandbox.recorder.note("refused", said=text)

    return tell


def begin(sandbox: Sandbox) -> None:
    """The sandbox is served."""
    if not sandbox.recorder.on:
        return
    sandbox.recorder.note("sandbox", **_facts(sandbox))
    if sandbox.facts().egress:
        threading.Thread(target=_watch_egress, args=(sandbox,), name="egress", daemon=True).start()


def end(sandbox: Sandbox) -> None:
    """The sandbox ends."""
    if sandbox.recorder.on:
        sandbox.recorder.note("sandbox-end", **_facts(sandbox))


def start_failed(error: BufferzoneError, id: str) -> None:
    """There is no sandbox, since it could not be started."""
    with passing_over("record a failed start", BufferzoneError):  # of settings that cannot be read
        recorder.of(config.load(), id).note("start-failed", reason=error.line(), code=error.code)


def _facts(sandbox: Sandbox) -> dict[str, Any]:
    known = sandbox.info()
    return {name: known[name] for name in (*_FACTS, *_REFUSED) if known[name]}


def _watch_egress(sandbox: Sandbox) -> None:
    """One line for each time that more was refused, with the counts so far."""
    known: dict[str, int] = {}
    waiting = threading.Event()
    while not waiting.wait(_LOOK_S):
        now = {name: count for name, count in sandbox.network.refused().items() if count}
        if now != known:
            sandbox.recorder.note("egress-refused", packets=now)
            known = now
