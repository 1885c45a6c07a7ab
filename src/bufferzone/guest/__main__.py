"""PID 1 of the VM: boot, serve, power off.

A fatal error of PID 1 becomes one line on the console and the VM powers off: a kernel panic would say less.
"""

from __future__ import annotations

import os

from bufferzone.container.loop import report, warn
from bufferzone.guest import vsock
from bufferzone.guest.agent import Agent
from bufferzone.guest.boot import CGROUP_ROOT, Phases, boot
from bufferzone.linux import process as lp

POWER_OFF, RESTART = 0x4321FEDC, 0x01234567


def main() -> None:
    """Be PID 1."""
    phases = Phases()
    try:
        fd = boot(phases)
        lp.set_dumpable(False)
        reconnect = vsock.connect if vsock.is_chosen() else None
        Agent(fd, os.path.join(CGROUP_ROOT, "bufferzone"), phases.rows, reconnect=reconnect).serve()
    except BaseException as error:
        _last_words(error)
    finally:
        os.sync()
        # Firecracker has no power to switch off: a reset is its end
        lp.reboot(RESTART if vsock.is_chosen() else POWER_OFF)


def _last_words(error: BaseException) -> None:
    """One line on the console, however far the boot has come."""
    try:
        console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
        os.dup2(console, 2)
    except OSError:
        pass  # then stderr is what the kernel gave
    report(error)
    warn("fatal: powering off")


if __name__ == "__main__":
    main()
