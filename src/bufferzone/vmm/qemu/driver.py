"""Starting QEMU in its jail, and the started VM as an object.

Refuses: a monitor on a socket path, daemonizing, restarting. One `Vmm` is one process; when it is gone, it is
gone.
"""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass

from bufferzone import jail
from bufferzone.errors import HostError, VmmError
from bufferzone.vmm.console import BoundedLog, Reader
from bufferzone.vmm.explain import explain
from bufferzone.vmm.qemu import command_line
from bufferzone.vmm.qemu.qmp import Qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.model import VmSpec
    from bufferzone.spawn import Child

#: paths in the jail, for `VmSpec.kernel_path` and `VmSpec.initrd_path`
KERNEL_PATH, INITRD_PATH = "/boot/kernel", "/boot/initrd"
MEMORY_PATH = "/memory"
#: console lines looked at for an explanation: a panic's call trace and registers come after its one line
_TRACE_LINES = 120
_PROGRAM = "qemu-system-x86_64"
_SEARCH = "/usr/bin:/usr/local/bin:/usr/libexec"
_FIRMWARE_PLACES = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm")
# the first file found boots; pvh.bin is what lets SeaBIOS start a PVH kernel
_FIRMWARE_FILES = ("qboot.rom", "bios-256k.bin")
_OPTION_ROMS = ("pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What the caller decides about QEMU's jail: ids, `cgroup.procs` descriptors to join."""

    uid: int
    gid: int
    cgroups: tuple[int, ...] = ()


class Vmm:
    """A running QEMU. Owns the process, the control channel and the stderr log.

    `qmp` may not be used before `greet`. Threads start with `watch`, after all helpers were forked.
    """

    def __init__(self, child: Child, qmp: Qmp, stderr: Reader, console: Reader) -> None:
        self.child = child
        self.qmp = qmp
        self.version = ""
        self._stderr = stderr
        self._console = console

    @property
    def pid(self) -> int:
        """The process id in the host's namespace."""
        return self.child.pid

    def fileno(self) -> int:
        """The pidfd: readable when QEMU has ended."""
        return self.child.pidfd

    def watch(self) -> None:
        """Start the threads that drain console and stderr."""
        self._console.start()
        self._stderr.start()

    def greet(self, timeout_s: float = 20.0) -> None:
        """Wait until QEMU answers on its control channel; raises the explained VmmError if it does not."""
        try:
            self.version = self.qmp.greet(timeout_s)
        except VmmError as error:
            raise self.failure("start QEMU", waited_s=timeout_s) from error

    def failure(self, phase: str, *, waited_s: float | None = None) -> VmmError:
        """The explanation of what went wrong in `phase`, from the exit status, the console and stderr."""
        self.qmp.pump()
        # a closed control channel or a panic announces an end that may be milliseconds away
        status = self.child.wait_exit(0.5)
        if status is not None:
            self._stderr.join()
            self._console.join()
            self.qmp.pump()  # its last words came while we waited
        return explain(
            phase,
            status=status,
            panicked=self.qmp.panic(),
            reset=self.qmp.reset(),
            console=self.console_tail(_TRACE_LINES),
            stderr=self.stderr_tail(),
            waited_s=waited_s,
        )

    def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """QEMU's exit status, negative for a signal; None when `timeout_s` passed first."""
        return self.child.wait_exit(timeout_s)

    def console_tail(self, lines: int = 20) -> list[str]:
        """The last console lines, printable."""
        return self._console.log.tail(lines)

    def stderr_tail(self, lines: int = 20) -> list[str]:
        """The last lines QEMU printed, printable."""
        return self._stderr.log.tail(lines)

    def quit(self, timeout_s: float = 2.0) -> int | None:
        """Ask QEMU to exit, kill it after `timeout_s`; returns the status."""
        try:
            self.qmp.execute("quit", timeout_s=timeout_s)
        except VmmError:
            self.kill()
        if self.wait_exit(timeout_s) is None:
            self.kill()
        return self.wait_exit()

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()

    def close(self) -> None:
        """Kill, reap, close everything. May be called twice."""
        self.child.close()
        self.qmp.close()
        self._stderr.join()
        self._console.join()

    def __enter__(self) -> Vmm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_program() -> str:
    """The QEMU binary; raises HostError `qemu-missing`."""
    path = shutil.which(_PROGRAM, path=_SEARCH)
    if path is None:
        raise HostError(
            f"program not found: {_PROGRAM}", hint="apt-get install qemu-system-x86", code="qemu-missing"
        )
    return os.path.realpath(path)


def find_firmware(places: tuple[str, ...] = _FIRMWARE_PLACES) -> tuple[str, tuple[jail.JailBind, ...]]:
    """The firmware to boot, and binds that show it and the option ROMs in the jail; raises HostError."""
    binds: list[jail.JailBind] = []
    found: list[str] = []
    for name in (*_FIRMWARE_FILES, *_OPTION_ROMS):
        for place in places:
            path = os.path.realpath(os.path.join(place, name))
            if os.path.isfile(path):
                binds.append(jail.JailBind(source=path, target=f"{command_line.FIRMWARE_DIRECTORY}/{name}"))
                found.append(name)
                break
    for name in _FIRMWARE_FILES:
        if name in found:
            return name, tuple(binds)
    raise HostError(
        f"no firmware for QEMU in: {' '.join(places)}",
        hint="apt-get install qemu-system-data seabios",
        code="qemu-missing",
    )


def describe_jail(
    program: str,
    spec: VmSpec,
    confinement: Confinement,
    *,
    kernel: str,
    initrd: str,
    firmware: tuple[jail.JailBind, ...],
    log_fd: int,
    memory: str = "",
) -> jail.Jail:
    """QEMU's jail: the program, libraries, firmware, kernel and initrd, all read-only; /dev/kvm when used.

    `memory` is the host's path of `spec.memory_path`, the only thing QEMU may write to.
    """
    libraries, links = jail.library_view()
    binds = [*libraries, *firmware, jail.JailBind(source=program, target=program)]
    if memory:
        binds.append(jail.JailBind(source=memory, target=spec.memory_path, writable=True))
    if kernel and not spec.restored:
        binds.append(jail.JailBind(source=kernel, target=spec.kernel_path))
    if initrd and not spec.restored:
        binds.append(jail.JailBind(source=initrd, target=spec.initrd_path))
    donated = [spec.agent_fd, spec.console_fd, spec.control_fd]
    donated += [share.fd for share in spec.shares] + [nic.fd for nic in spec.nics]
    return jail.Jail(
        name="qemu",
        uid=confinement.uid,
        gid=confinement.gid,
        log_fd=log_fd,
        keep_fds=tuple(donated),
        binds=tuple(binds),
        links=links,
        devices=("null", "urandom"),
        owned_devices=("kvm",) if spec.accelerator == "kvm" else (),
        cgroups=confinement.cgroups,
    )


def start(
    spec: VmSpec,
    confinement: Confinement,
    *,
    kernel: str,
    initrd: str,
    control: socket.socket,
    console: Reader,
    stderr_file_fd: int = -1,
    memory: str = "",
) -> Vmm:
    """Start QEMU for `spec`, in its jail. `kernel`, `initrd` and `memory` (if any) are paths on the host.

    `control` is our end of the pair whose other end is `spec.control_fd`, `console` reads our end of the
    console's; both are owned by the result, as is `stderr_file_fd`. The caller closes its copies of the
    descriptors in `spec`. Raises HostError; then nothing runs, and `control` and `console` still belong to
    the caller.
    """
    program = find_program()
    firmware, binds = find_firmware()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        confined = describe_jail(
            program,
            spec,
            confinement,
            kernel=kernel,
            initrd=initrd,
            firmware=binds,
            log_fd=writer,
            memory=memory,
        )
        child = jail.start(command_line.argv(program, spec, firmware=firmware), confined)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return Vmm(child, Qmp(control), Reader("qemu-stderr", reader, BoundedLog(stderr_file_fd)), console)
