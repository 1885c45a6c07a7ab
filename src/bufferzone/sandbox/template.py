"""Makes templates: boots a VM of the wanted shape with nothing in it, lets the guest settle, stops and saves
it.

Made in the background by a process of its own, after the first cold boot of a shape; whoever starts a
container meanwhile boots cold. The process lives for seconds, holds the maker's lock, and leaves nothing when
killed but a temporary directory that the next `prune` removes.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict

from bufferzone import jail
from bufferzone.errors import BufferzoneError
from bufferzone.image import templates
from bufferzone.model import ImageRef
from bufferzone.sandbox.agent import AgentClient
from bufferzone.sandbox.machine import Channels, Machine, spec_of, template_key
from bufferzone.storage import ram
from bufferzone.vmm import driver, snapshot
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: free pages are reported about two seconds after they became free (mm/page_reporting.c)
_REPORTING_S = 2.5
_SETTLE_LIMIT_S = 10.0
_MIB = 1 << 20
#: templates kept, and bytes on disk; least recently used go first
KEEP, MOST_BYTES = 8, 4 << 30


class Maker:
    """A process that waits for `go` and then makes one template; it ends by itself when we end before
    that.
    """

    def __init__(self, machine: Machine, store: str, run_directory: str) -> None:
        order = {"machine": asdict(machine), "store": store, "run_directory": run_directory}
        self._order = json.dumps(order).encode()
        shim = os.path.join(
            os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "shim", "__main__.py"
        )
        read_end, self._write = os.pipe2(os.O_CLOEXEC)
        actions = [
            (os.POSIX_SPAWN_DUP2, read_end, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        argv = [sys.executable, "-I", "-S", shim, "template"]
        try:
            self.pid = os.posix_spawn(sys.executable, argv, {}, file_actions=actions, setsid=True)
        finally:
            os.close(read_end)

    def go(self) -> None:
        """Let it begin."""
        try:
            os.write(self._write, self._order)
        except OSError:
            pass  # it is gone; there will be another cold boot
        self.cancel()

    def cancel(self) -> None:
        """Never mind: it ends. Harmless after `go`."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1


def run_maker(order: bytes) -> int:
    """The maker's process: `order` is what `go` sent; returns the exit status."""
    if not order:
        return 0
    value = json.loads(order)
    machine = dict(value["machine"])
    image = dict(machine["image"])
    image["arguments"] = tuple(image["arguments"])
    machine["image"] = ImageRef(**image)
    machine["kernel_arguments"] = tuple(machine["kernel_arguments"])
    os.nice(10)  # somebody's container is starting
    make(Machine(**machine), value["store"], value["run_directory"])
    return 0


def make(
    machine: Machine, store: str, run_directory: str, progress: Callable[[str], None] = lambda line: None
) -> str:
    """Make the template for `machine` unless it is there or being made; returns its key.

    The process must have one thread only. Raises `HostError` or `VmmError`; then nothing is left.
    """
    key = template_key(machine)
    with templates.making(store, key) as directory:
        if directory is None:
            progress(f"template {key} is being made by another process")
            return key
        try:
            found = templates.open_template(store, key)
            if found is not None:
                found.close()
                progress(f"template {key} is there")
                return key
        except BufferzoneError as error:
            progress(error.line())
        began = time.monotonic()
        _boot_and_save(machine, directory, run_directory)
        facts = {
            "image": machine.image.digest,
            "accelerator": machine.accelerator,
            "vcpus": machine.vcpus,
            "memory_mib": machine.memory_mib,
            "made_at": int(time.time()),
            "took_s": round(time.monotonic() - began, 2),
        }
        templates.publish(store, key, directory, facts)
    templates.prune(store, keep=KEEP, most_bytes=MOST_BYTES)
    return key


def _boot_and_save(machine: Machine, directory: str, run_directory: str) -> None:
    memory, state = (os.path.join(directory, name) for name in (templates.MEMORY, templates.STATE))
    with ExitStack() as stack:
        uids = stack.enter_context(jail.allocate_uid(run_directory))
        os.close(ram.create(memory, machine.memory_mib * _MIB, uids.vmm))
        channels = Channels(stack)
        vmm = driver.start(
            spec_of(machine, "template", channels, in_file=True),
            driver.Confinement(uid=uids.vmm, gid=uids.vmm),
            kernel=machine.kernel,
            initrd=machine.initrd,
            control=channels.control,
            console=channels.console_reader(-1),
            memory=memory,
        )
        stack.enter_context(vmm)
        channels.close_remote()
        vmm.watch()
        client = AgentClient(channels.agent)
        stack.callback(client.close)
        client.start()
        vmm.greet()
        hello = agent.HelloRequest(entropy=os.urandom(64), hostname="template")
        client.call("Hello", hello, agent.HelloResponse, timeout_s=120)
        client.call("Settle", Empty(), Empty, timeout_s=60)
        _await_free_pages(memory)
        state_fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            snapshot.save(vmm, state_fd)
        finally:
            os.close(state_fd)
        vmm.quit()


def _await_free_pages(memory: str) -> None:
    """Wait until the memory file stops shrinking: the balloon has told which pages are free."""
    end = time.monotonic() + _SETTLE_LIMIT_S
    before = -1
    while (now := os.stat(memory).st_blocks) != before and time.monotonic() < end:
        before = now
        select.select([], [], [], _REPORTING_S)
