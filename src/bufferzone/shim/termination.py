"""Signals to a shim. SIGTERM ends the sandbox; in a scope any was meant for all that is in it.

`systemctl stop` and `systemctl kill` signal every process of a unit. A waiter passes it on to what it stands
for, and QEMU and virtiofsd are deaf to it (`jail`), so that containers end by themselves, as under another
runtime; then their VM does. Where containerd started a container a stand-in of ours stands for it, which is
deaf too: the passing on is the shim's. Who does not end in time is killed by systemd (TimeoutStopSec).
"""

from __future__ import annotations

import signal
import threading

from bufferzone.errors import BufferzoneError
from bufferzone.log import passing_over
from bufferzone.spawn import ENDING
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.shim.task import TaskService


def be_told(sandbox: Sandbox, tasks: TaskService) -> None:
    """From now on signals do this. Main thread."""

    def told(number: int, _: object) -> None:
        if number == signal.SIGTERM and (not sandbox.cgroup.unit or tasks.is_unused()):
            sandbox.end()
        else:  # calls the guest, which a signal handler must not wait for
            threading.Thread(target=_pass_on, args=(tasks, number), name="signal", daemon=True).start()

    for number in ENDING if sandbox.cgroup.unit else (signal.SIGTERM,):
        signal.signal(number, told)


def _pass_on(tasks: TaskService, number: int) -> None:
    for container_id in tasks.table.stood_for_by_us():
        with passing_over(f"pass signal {number} on to {container_id}", BufferzoneError):  # it has just ended
            tasks.kill(None, task.KillRequest(id=container_id, signal=number))
