"""What a guest costs before a container is in it: a VM boots until its agent answers, and is looked at.

Translated blocks and touched memory do not depend on how fast the machine is, nor on what runs beside it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from bufferzone import config, jail
from bufferzone.bench.memory import MIB, parse_areas
from bufferzone.errors import HostError, VmmError
from bufferzone.vm import nic
from bufferzone.vm.hello import begin_hello
from bufferzone.vm.launch import VmLauncher
from bufferzone.vm.shape import describe
from bufferzone.vm.size import size_for
from bufferzone.vm.timeline import Timeline
from bufferzone.vmm.qemu.process import Qemu
from bufferzone.wire import agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.vmm.qemu.qmp import Qmp

_COUNT = "TB count"


def measure(directory: str) -> dict[str, float]:
    """Boot the VM that the settings describe; `directory` is new and ours.

    Returns `image_mib` (kernel and initrd), `touched_mib` (of the guest's memory, when the agent answers),
    `blocks` (translated until then, -1 where none are). Raises `BufferzoneError`.
    """
    settings = config.load()
    size = size_for({}, {}, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
    os.makedirs(directory)
    with ExitStack() as stack:
        shape = describe(settings, size, directory, lambda line: None, nic=nic.has_taps())
        uids = stack.enter_context(jail.allocate_uid(os.path.join(directory, "uids")))
        launcher = VmLauncher(
            "guest",
            shape,
            directory,
            uids=uids,
            tree=None,
            nic_fd=nic.idle(stack, shape),
            open_files=0,
            timeline=Timeline(),
        )
        vm = launcher.boot(stack)
        vm.watch()
        vm.agent.start()
        vm.greet(settings.boot_timeout_s)
        begin_hello(vm.agent, "bench", settings.boot_timeout_s).result(agent.HelloResponse)
        if not isinstance(vm.vmm, Qemu):
            raise HostError("only QEMU tells what it has translated", hint="vmm = qemu")
        touched, translated = _resident(vm.vmm.pid, shape.memory_mib * MIB), blocks(vm.vmm.qmp)
        vm.kill()
    files = sum(os.stat(path).st_size for path in (shape.kernel, shape.initrd))
    return {"image_mib": round(files / MIB, 1), "touched_mib": round(touched / MIB, 1), "blocks": translated}


def _resident(pid: int, size: int) -> int:
    """Resident bytes of the one mapping that is as large as the guest's memory."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        areas = parse_areas(file.read())
    for header, resident in areas:
        first, _, last = header.partition(" ")[0].partition("-")
        if int(last, 16) - int(first, 16) == size:
            return resident
    raise HostError("the VMM has no mapping of the size of its guest's memory")


def blocks(qmp: Qmp) -> int:
    """How many blocks of guest code QEMU has translated; -1 where it does not translate."""
    try:
        text = str(qmp.execute("human-monitor-command", {"command-line": "info jit"}))
    except VmmError:
        return -1
    for line in text.splitlines():
        if line.startswith(_COUNT):
            return int(line[len(_COUNT) :].split()[0])
    return -1
