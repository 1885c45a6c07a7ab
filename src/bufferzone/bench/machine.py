"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import os

from bufferzone import config
from bufferzone.errors import BufferzoneError
from bufferzone.linux import mount
from bufferzone.linux.process import CLONE_NEWNS, become_subreaper, unshare
from bufferzone.vm import nic
from bufferzone.vm.shape import describe
from bufferzone.vm.size import size_for
from bufferzone.vmm.qemu import driver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CGROUP2 = "/sys/fs/cgroup/unified"


def facts(directory: str) -> dict[str, Any]:
    """Kernel, CPUs, memory, load, accelerator, guest image and shape, QEMU's program."""
    found: dict[str, Any] = {
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "cpu": _line("/proc/cpuinfo", "model name"),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "load_before": os.getloadavg()[0],
    }
    try:
        settings = config.load()
        size = size_for({}, {}, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
        machine = describe(settings, size, directory, lambda line: None, nic=nic.has_taps())
        found.update(
            accelerator=machine.accelerator,
            image=machine.image.digest,
            vcpus=machine.vcpus,
            guest_memory_mib=machine.memory_mib,
            qemu=driver.find_program(),
        )
    except BufferzoneError as error:
        found["problem"] = error.line()
    return found


def _line(path: str, key: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def step_aside() -> None:
    """Become the parent of all orphans, in a mount namespace of our own, where cgroup v1 stands alone.

    crun refuses a machine that has both versions when the second one has a controller.
    """
    become_subreaper()
    unshare(CLONE_NEWNS)
    mount.mount("", "/", flags=mount.MS_REC | mount.MS_SLAVE)
    if os.path.ismount(_CGROUP2):
        try:
            mount.unmount(_CGROUP2, mount.MNT_DETACH)
        except OSError:
            pass  # then crun tells why it does not start
