"""The floor: the same QEMU restores the same template and the same agent runs the same process, and there is
nothing around it. No verb, no shim, no interpreter to start, no jail, no cgroup, no state, no hooks.

What lies between this and `bufferzone-warm` is ours to make smaller; what lies below it is QEMU's and the
guest's. QEMU and virtiofsd run with our rights here, so never with a guest that one does not trust.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from bufferzone import config
from bufferzone.bench import bundles, guests, programs
from bufferzone.errors import GuestError, HostError
from bufferzone.guestimage import template_store
from bufferzone.model import Share
from bufferzone.sandbox import mounts, plan
from bufferzone.spawn import Child
from bufferzone.storage import ram, virtiofs
from bufferzone.vm import nic
from bufferzone.vm.agent_client import AgentClient
from bufferzone.vm.shape import describe, spec_of, template_key
from bufferzone.vm.size import size_for
from bufferzone.vm.timeline import Timeline
from bufferzone.vmm.console import BoundedLog, Reader
from bufferzone.vmm.qemu import command_line, driver
from bufferzone.vmm.qemu.channels import Channels
from bufferzone.vmm.qemu.process import Qemu
from bufferzone.vmm.qemu.qmp import Qmp
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.vm.shape import VmShape

_ID = "floor"
_MOUNT_S = 20.0
_OPEN_FILES = 1024


class Floor:
    """Restores VMs by hand, as the settings of now have them. `directory` is new and ours.

    `blocks`: of guest code, translated from the last restore to its first byte; -1 where none are.
    """

    def __init__(self, directory: str) -> None:
        settings = config.load()
        self.blocks = -1
        self._size = size_for({}, {}, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
        os.makedirs(directory)
        self.shape: VmShape = describe(settings, self._size, directory, lambda line: None, nic=nic.has_taps())
        self._directory = directory
        self._template = _open_template(template_store.default_store(settings.image_store), self.shape)
        self._carries = self._template.carries_share
        self._tree = os.path.join(directory, "tree")
        bundles.make_rootfs(os.path.join(self._tree, plan.share_name(_ID, "rootfs")))
        spec = bundles.config("rootfs", {})
        decided = plan.plan_container(spec, container_id=_ID, bundle=directory, host=mounts.Host())
        self._request = agent.CreateRequest(id=_ID, spec=decided.guest_spec)
        self._firmware, self._firmware_name = self._link_firmware()
        self._log = os.open(os.path.join(directory, "log"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Let go of the template."""
        self._template.close()
        os.close(self._log)

    def _link_firmware(self) -> tuple[str, str]:
        """A directory that shows QEMU the same firmware files as its jail does."""
        name, binds = driver.find_firmware()
        directory = os.path.join(self._directory, "firmware")
        os.mkdir(directory)
        for bind in binds:
            os.symlink(str(bind.source), os.path.join(directory, os.path.basename(bind.target)))
        return directory, name

    def start(self) -> tuple[float, list[tuple[str, float]]]:
        """Restore, run the process up to its first byte of stdout, and end it all.

        Returns the milliseconds, and the phases as the boot timeline has them. Raises `BufferzoneError`.
        """
        with ExitStack() as stack:
            begin, timeline = time.perf_counter(), Timeline()
            timeline.enter("start virtiofsd")
            share = self._start_virtiofsd(stack)
            timeline.enter("start QEMU")
            memory_fd = self._make_memory(stack)
            vmm = self._start_qemu(stack, share, memory_fd)
            timeline.enter("copy memory")
            ram.copy(self._template.memory_fd, memory_fd)
            timeline.enter("load the template")
            vmm.greet()
            os.lseek(self._template.state_fd, 0, os.SEEK_SET)
            vmm.load(self._template.state_fd)
            if not self._carries:
                vmm.plug_share(share)
            vmm.resume()
            timeline.enter("wake the guest")
            client = AgentClient(vmm.agent)
            stack.callback(client.close)
            client.start()
            self._run_process(client, timeline)
            total_ms = (time.perf_counter() - begin) * 1000
            self.blocks = guests.blocks(vmm.qmp)
            vmm.kill()
        return total_ms, timeline.marks()

    def _run_process(self, client: AgentClient, timeline: Timeline) -> None:
        """What the shim and its callers ask the agent between a restore and the first byte."""
        hello = agent.HelloRequest(entropy=os.urandom(64), hostname="bench")
        answer = client.call("Hello", hello, agent.HelloResponse)
        offset = time.time_ns() - min(answer.monotonic_ns, 1 << 62)
        client.call("SetClock", agent.SetClockRequest(offset_ns=offset), agent.SetClockResponse)
        timeline.enter("mount the share")
        _mount(client)
        timeline.enter("create the container")
        client.call("Create", self._request, agent.PidResponse)
        timeline.enter("start its process")
        client.call("Start", agent.ProcessRef(id=_ID), Empty)
        timeline.enter("first byte")
        read = agent.ReadRequest(id=_ID, stream=agent.STDOUT, limit=agent.CHUNK)
        if not client.call("Read", read, agent.ReadResponse).data:
            raise HostError("the process in the bare VM printed nothing")
        timeline.finish()

    def _start_virtiofsd(self, stack: ExitStack) -> Share:
        program = virtiofs.find_program()
        listener, near = virtiofs.connected_pair(self._directory)
        with listener:
            words = virtiofs.argv(program, listener.fileno(), _OPEN_FILES, uid=os.geteuid())
            words = [word.replace(virtiofs.TREE_PATH, self._tree) for word in words]
            stack.enter_context(self._spawn(words, [listener.fileno()]))
        stack.enter_context(near)
        return Share(tag=agent.SHARE_TAG, fd=near.fileno())

    def _make_memory(self, stack: ExitStack) -> int:
        fd = os.memfd_create("floor", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, self.shape.memory_mib << 20)
        return fd

    def _park(self, stack: ExitStack) -> int:
        tap = nic.park(print)
        if tap is None:
            raise HostError("the floor's VM has a NIC and gets none", code="no-tap")
        stack.callback(os.close, tap.namespace_fd)
        stack.callback(os.close, tap.fd)
        return tap.fd

    def _start_qemu(self, stack: ExitStack, share: Share, memory_fd: int) -> Qemu:
        tap = self._park(stack) if self.shape.nic else -1
        memory = f"/proc/self/fd/{memory_fd}"
        spec = spec_of(
            self.shape, _ID, shares=(share,), memory=memory, carries_share=self._carries, nic_fd=tap
        )
        channels = Channels()
        stack.callback(channels.close)
        ends = channels.ends
        program, firmware = driver.find_program(), self._firmware_name
        words = command_line.argv(program, spec, ends, restored=True, firmware=firmware)
        seen = {command_line.FIRMWARE_DIRECTORY: self._firmware}  # the jail would show it there
        words = [
            seen.get(word, word.replace(f"mem-path={command_line.MEMORY_PATH}", f"mem-path={spec.memory}"))
            for word in words
        ]
        inherited = [ends.agent, ends.console, ends.control, share.fd, memory_fd]
        child = self._spawn(words, [*inherited, *(each.fd for each in spec.nics)])
        silent, writer = os.pipe2(os.O_CLOEXEC)
        os.close(writer)
        vmm = Qemu(
            child,
            Qmp(channels.control),
            channels.agent,
            stderr=Reader("qemu-stderr", silent, BoundedLog()),
            console=Reader("console", channels.console.detach(), BoundedLog()),
        )
        stack.enter_context(vmm)
        channels.close_remote()
        vmm.watch()
        return vmm

    def _spawn(self, words: Sequence[str], fds: Sequence[int]) -> Child:
        """Start a helper that inherits `fds` under their own numbers."""
        actions = [(os.POSIX_SPAWN_DUP2, self._log, 1), (os.POSIX_SPAWN_DUP2, self._log, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]  # to itself: it stays open
        pid = os.posix_spawn(words[0], list(words), programs.ENVIRONMENT, file_actions=actions, setsid=True)
        return Child(os.path.basename(words[0]), pid, os.pidfd_open(pid))


def _open_template(store: str, shape: VmShape) -> template_store.Template:
    found = template_store.open_template(store, template_key(shape))
    if found is None:
        raise HostError("there is no template of this shape", hint="bz template make", code="no-template")
    return found


def _mount(client: AgentClient) -> None:
    """Mount the share, asking again until the guest has found its device, as the shim does."""
    request = agent.MountRequest(kind="virtiofs", source=agent.SHARE_TAG, target=agent.SHARE_PATH)
    end = time.monotonic() + _MOUNT_S
    while True:
        try:
            client.call("Mount", request, Empty)
            return
        except GuestError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)
