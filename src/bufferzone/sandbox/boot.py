"""Carries out a plan: `boot` reads as the whole story of how a sandbox comes up, `Sandbox` is what is up then.

Everything is forked before the first thread starts, from fds we own, and is given back in reverse by one exit
stack. What would outlive a killed shim is written to leftovers.json before the next step.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager

from bufferzone import config, jail, oci, state
from bufferzone.errors import HostError
from bufferzone.image import store
from bufferzone.linux import kvm
from bufferzone.model import ImageRef, Share, VmSpec
from bufferzone.sandbox import cgroups, plan
from bufferzone.sandbox.agent import AgentClient
from bufferzone.sandbox.running import Sandbox
from bufferzone.sandbox.timeline import Timeline
from bufferzone.storage import share, virtiofs
from bufferzone.vmm import accelerator, console, driver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bufferzone.config import Settings
    from bufferzone.oci import Spec

#: uids are unique on the machine, whatever state root a caller uses
_RUN_DIRECTORY = "/run/bufferzone-uids"


@contextmanager
def boot(container_id: str, spec: Spec, directory: str, log: Callable[[str], None]) -> Iterator[Sandbox]:
    """Start the VM for `spec`'s sandbox and yield it, booting still; on leaving, nothing of it is left.

    `directory` is the state directory. Raises `CallerError` for wishes that cannot be met, `HostError` and
    `VmmError` when a step fails. The process must have one thread only.
    """
    timeline = Timeline()
    settings = oci.apply_vm(oci.apply_annotations(config.load(), spec.annotations), spec.vm)
    image = _image(settings)
    chosen = _accelerator(settings, directory, log)
    size = plan.plan_vm(spec.raw, vcpus=settings.vcpus, memory_mib=settings.memory_mib)
    cgroup = cgroups.relative_path(spec.cgroups_path, container_id)
    with ExitStack() as stack:
        left = _Leftovers(directory)
        if cgroup:
            joined = cgroups.join(cgroup, os.getpid())
            stack.callback(cgroups.leave_and_remove, joined, os.getpid())
            left.add_cgroups(joined)
        share.own_namespace()
        uids = stack.enter_context(jail.allocate_uid(_RUN_DIRECTORY if os.getuid() == 0 else directory))
        tree = stack.enter_context(share.Tree(_make_directory(directory, "share")))

        timeline.enter("start virtiofsd")
        log_fd = console.open_file(os.path.join(directory, "virtiofsd.log"))
        stack.callback(os.close, log_fd)
        daemon, shared = virtiofs.start(tree.fd, directory, uid=uids.helper, gid=uids.helper, log_fd=log_fd)
        stack.enter_context(daemon)
        left.add_process(daemon.pid)

        timeline.enter("start QEMU")
        channels = _Channels(stack)
        stack.callback(_close, shared.fd)
        vm = _vm_spec(container_id, settings, size, image, chosen.name, channels, shared)
        vmm = driver.start(
            vm,
            driver.Confinement(uid=uids.vmm, gid=uids.vmm),
            kernel=settings.kernel or image.kernel,
            initrd=settings.initrd or image.initrd,
            control=channels.control,
            console=_console(channels, directory),
        )
        stack.enter_context(vmm)
        channels.close_remote()
        left.add_process(vmm.pid)

        sandbox = Sandbox(
            container_id,
            vmm=vmm,
            daemon=daemon,
            share=tree,
            agent_client=AgentClient(channels.agent),
            timeline=timeline,
            cgroup=cgroup,
            boot_timeout_s=settings.boot_timeout_s,
            facts=_facts(settings, image, size, chosen.name),
            log=log,
        )
        stack.callback(sandbox.close)
        yield sandbox


class _Channels:
    """The three socket pairs to QEMU: agent, console, control. Our ends pass to their owners, QEMU's are closed."""

    def __init__(self, stack: ExitStack) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        (self.agent, agent_there), (self.console, console_there), (self.control, control_there) = pairs
        self._remote = (agent_there, console_there, control_there)
        self.agent_fd, self.console_fd, self.control_fd = (sock.fileno() for sock in self._remote)
        for near, far in pairs:
            stack.callback(near.close)
            stack.callback(far.close)

    def close_remote(self) -> None:
        """Close our copies of QEMU's ends, so that its death is seen as end of file."""
        for sock in self._remote:
            sock.close()


class _Leftovers:
    """leftovers.json, rewritten at every step that leaves something behind."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._processes: list[list[int]] = []
        self._cgroups: list[str] = []

    def add_process(self, pid: int) -> None:
        self._processes.append([pid, state.process_start(pid)])
        self._write()

    def add_cgroups(self, directories: list[str]) -> None:
        self._cgroups += directories
        self._write()

    def _write(self) -> None:
        state.write_leftovers(self._directory, {"processes": self._processes, "cgroups": self._cgroups})


def _vm_spec(
    name: str, settings: Settings, size: plan.VmPlan, image: ImageRef, accelerator_name: str, channels: _Channels, shared: Share
) -> VmSpec:
    return VmSpec(
        name=name,
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        accelerator=accelerator_name,
        kernel_path=driver.KERNEL_PATH,
        initrd_path=driver.INITRD_PATH,
        kernel_arguments=(*image.arguments, *settings.kernel_arguments),
        agent_fd=channels.agent_fd,
        console_fd=channels.console_fd,
        control_fd=channels.control_fd,
        shares=(shared,),
    )


def _console(channels: _Channels, directory: str) -> console.Reader:
    log = console.BoundedLog(console.open_file(os.path.join(directory, "console.log")))
    return console.Reader("console", channels.console.detach(), log)


def _image(settings: Settings) -> ImageRef:
    """The guest image the settings name: a digest in the store, a directory, or the current one."""
    if settings.image.startswith("/"):
        return store.open_image(os.path.dirname(settings.image.rstrip("/")), os.path.basename(settings.image.rstrip("/")))
    return store.open_image(settings.image_store, settings.image or None)


def _accelerator(settings: Settings, directory: str, log: Callable[[str], None]) -> accelerator.Accelerator:
    """Probe and choose; what the user should know goes to the log."""
    if settings.accelerator == "tcg" and settings.kvm != "require":
        return accelerator.Accelerator("tcg", reason="asked for")
    probe = kvm.cached_probe(os.path.join(os.path.dirname(directory), "kvm-probe.json"))
    chosen = accelerator.choose("require" if settings.accelerator == "kvm" else settings.kvm, probe)
    if chosen.warning:
        log(chosen.warning)
    return chosen


def _facts(settings: Settings, image: ImageRef, size: plan.VmPlan, accelerator_name: str) -> dict[str, str]:
    return {
        "bufferzone.accelerator": accelerator_name,
        "bufferzone.kvm": settings.kvm,
        "bufferzone.image": image.digest,
        "bufferzone.vcpus": str(size.vcpus),
        "bufferzone.memory": str(size.memory_mib),
    }


def _make_directory(parent: str, name: str) -> str:
    path = os.path.join(parent, name)
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise HostError(f"cannot create {path}: {error.strerror}", code="state-dir") from error
    return path


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # handed over
