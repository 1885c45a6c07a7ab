"""Puts a VM together, for everybody who has one: its memory, virtiofsd and the VMM, cold or restored.

Everything is forked by one thread, from descriptors that we own. What a VM takes is on the caller's exit
stack. Refuses: to know what the VM is for.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager

from bufferzone.errors import HostError, VmmError
from bufferzone.linux import nameless
from bufferzone.model import Confinement, Share
from bufferzone.record import Record
from bufferzone.storage import ram, virtiofs
from bufferzone.vm.agent_client import AgentClient
from bufferzone.vm.shape import UNLIMITED, spec_of
from bufferzone.vmm import console, drivers
from bufferzone.wire.agent import ROOT_DISK, SHARE_TAG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bufferzone.jail import UidLease
    from bufferzone.model import Rates, VmSpec
    from bufferzone.spawn import Child
    from bufferzone.storage.share import Tree
    from bufferzone.vm.agent_client import Pending
    from bufferzone.vm.saved import SavedVm
    from bufferzone.vm.shape import VmShape
    from bufferzone.vm.timeline import Timeline
    from bufferzone.vmm.interface import Vmm

#: what a VMM whose control channel is closed may take to end
_SETTLE_S = 1.0


class RunningVm(Record):
    """A VM with its helpers. Owned by the exit stack that it was made on.

    `tree` and `virtiofsd`: None where nothing is shared. `memory_fd`: the file that is its memory, -1: none.
    `awake`: the VMM was greeted and the guest runs, else both are coming up. `share_mounted` and `greeting`,
    a Hello that was sent: what was done before somebody took the VM over.
    """

    shape: VmShape
    vmm: Vmm
    agent: AgentClient
    virtiofsd: Child | None
    virtiofsd_log: console.Reader | None
    tree: Tree | None
    memory_fd: int
    awake: bool
    share_mounted: bool = False
    greeting: Pending | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the VMM, and of virtiofsd if there is one."""
        return (self.vmm.pid, *((self.virtiofsd.pid,) if self.virtiofsd else ()))

    @property
    def helpers(self) -> tuple[tuple[str, int], ...]:
        """(role, pid) of the same, as an audit calls them."""
        return tuple(zip(("vmm", "virtiofsd"), self.pids, strict=False))

    @property
    def filenos(self) -> tuple[int, ...]:
        """In the same order, what becomes readable when one of them has ended."""
        return (self.vmm.fileno(), *((self.virtiofsd.fileno(),) if self.virtiofsd else ()))

    def greet(self, timeout_s: float) -> None:
        """Wait until the VMM can be talked to, and the channel to the agent is there; raises the explained
        `VmmError`.
        """
        self.vmm.greet(timeout_s)
        self.agent.attach(self.vmm.agent)

    def watch(self) -> None:
        """Start the threads that drain consoles and logs; nothing may be forked with `jail` from now on."""
        self.vmm.watch()
        if self.virtiofsd_log is not None:
            self.virtiofsd_log.start()

    def kill(self) -> None:
        """SIGKILL to all."""
        self.vmm.kill()
        if self.virtiofsd is not None:
            self.virtiofsd.kill()


class VmLauncher:
    """Starts the VM `name`. `directory` gets logs and mount points; `tree` is what it shares, None: nothing;
    `nic_fd` the back end of its NIC, -1: none; `open_files` as many as virtiofsd may have open.

    `record` is told of every process that has to end with it, `record_name` of every file that a kill could
    leave (its path, device and inode). `disks` is a directory on a disk, for files
    that the container's memory is not to be charged for. `answer_s`: how long a VMM that is to load a saved
    VM may take to answer. `rates`: what it may take.
    """

    def __init__(
        self,
        name: str,
        shape: VmShape,
        directory: str,
        *,
        uids: UidLease,
        tree: Tree | None,
        nic_fd: int,
        open_files: int,
        timeline: Timeline,
        record: Callable[[int], None] = lambda pid: None,
        record_name: Callable[[str, list[int]], None] = lambda path, identity: None,
        disks: str = "",
        answer_s: float = 20.0,
        rates: Rates = UNLIMITED,
    ) -> None:
        self._name, self._shape, self._directory = name, shape, directory
        self._uids, self._tree, self._nic_fd = uids, tree, nic_fd
        self._timeline, self._record, self._record_name = timeline, record, record_name
        self._open_files, self._disks, self._answer_s = open_files, disks, answer_s
        self._rates = rates
        self._names: list[str] = []
        self._driver = drivers.find(shape.vmm)

    def boot(self, stack: ExitStack, *, in_file: bool = False, carries_share: bool = False) -> RunningVm:
        """Start a VM that boots. `in_file`: its memory is a file, so that it can be saved, with its share in
        it if it `carries_share`. Raises `HostError` or `VmmError`.
        """
        daemon, log, shares = self._virtiofsd(stack)
        with self._naming():
            memory, memory_fd = self._memory(stack) if in_file else ("", -1)
            spec = self._spec(shares, memory, carries_share=carries_share)
            vmm = self._vmm(stack, self._driver.start, spec)
        self._timeline.enter("boot the guest")
        return self._running(stack, vmm, daemon, log, memory_fd, awake=False)

    def restore(self, stack: ExitStack, saved: SavedVm) -> RunningVm:
        """Start from a saved VM, the guest running when this returns; raises `VmmError` or `HostError`."""
        daemon, log, shares = self._virtiofsd(stack)
        features = self._driver.FEATURES
        with self._naming():
            mapped = self._mapped(stack, saved) if features.maps_memory else -1
            can_be_saved = features.snapshot and self._shape.block
            memory, memory_fd = self._memory(stack) if mapped < 0 or can_be_saved else ("", -1)
            spec = self._spec(shares, memory, carries_share=saved.carries_share, mapped_memory=mapped)
            vmm = self._vmm(stack, self._driver.restore, spec)
        if mapped < 0:
            self._timeline.enter("copy memory")  # while the VMM starts
            ram.copy(saved.memory_fd, memory_fd)
        phase = f"load the {saved.noun}"
        self._timeline.enter(phase)
        with _watched(vmm, phase):
            vmm.greet(self._answer_s)
            if mapped < 0:
                saved.check_memory(memory_fd)
            vmm.load(saved.state_fd)  # with which KVM writes to the memory: MSR_KVM_WALL_CLOCK_NEW
            if saved.disk_fd >= 0:
                disk_fd = self._shown(stack, saved) if features.maps_memory else saved.disk_fd
                vmm.insert_disk(ROOT_DISK, disk_fd)
            for share in () if saved.carries_share else shares:
                vmm.plug_share(share)
            vmm.resume()
        self._timeline.enter("wake the guest")
        return self._running(stack, vmm, daemon, log, memory_fd, awake=True)

    def _spec(
        self, shares: tuple[Share, ...], memory: str, *, carries_share: bool, mapped_memory: int = -1
    ) -> VmSpec:
        return spec_of(
            self._shape,
            self._name,
            shares=shares,
            memory=memory,
            carries_share=carries_share,
            nic_fd=self._nic_fd,
            mapped_memory=mapped_memory,
            directory=os.path.join(self._directory, "vmm"),
            rates=self._rates,
        )

    def _running(
        self,
        stack: ExitStack,
        vmm: Vmm,
        daemon: Child | None,
        log: console.Reader | None,
        memory_fd: int,
        *,
        awake: bool,
    ) -> RunningVm:
        client = AgentClient(vmm.agent)
        stack.callback(client.close)
        return RunningVm(
            shape=self._shape,
            vmm=vmm,
            agent=client,
            virtiofsd=daemon,
            virtiofsd_log=log,
            tree=self._tree,
            memory_fd=memory_fd,
            awake=awake,
        )

    def _mapped(self, stack: ExitStack, saved: SavedVm) -> int:
        """The saved memory for a VMM that maps it: the file itself, or a copy for this VMM's user."""
        if saved.is_mappable:
            return saved.memory_fd
        _, fd = self._on_disk(stack)
        ram.copy(saved.memory_fd, fd)
        saved.check_memory(fd)
        return fd

    def _shown(self, stack: ExitStack, saved: SavedVm) -> int:
        """The saved disk as a file that a VMM of any user may open: a copy without a name."""
        try:
            fd = nameless.create(self._disks)
            stack.callback(os.close, fd)
            os.ftruncate(fd, os.fstat(saved.disk_fd).st_size)
            ram.copy(saved.disk_fd, fd)
            os.fchmod(fd, 0o444)
        except OSError as error:
            text = f"cannot copy the saved disk to {self._disks}: {error.strerror}"
            raise HostError(text, code="disk") from error
        return fd

    def _on_disk(self, stack: ExitStack) -> tuple[str, int]:
        """A file of the memory's size, for this VMM's user: (path, descriptor). `_naming` ends its name."""
        path = os.path.join(self._disks, f"memory-{os.urandom(8).hex()}")
        try:
            os.makedirs(self._disks, 0o700, exist_ok=True)
            fd = ram.create(path, self._shape.memory_mib << 20, self._uids.vmm)
        except OSError as error:
            text = f"cannot make a file for the memory in {self._disks}: {error.strerror}"
            raise HostError(text, code="memory") from error
        self._names.append(path)
        stack.callback(os.close, fd)
        found = os.fstat(fd)
        self._record_name(path, [found.st_dev, found.st_ino])
        return path, fd

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """On leaving, what `_on_disk` made has no name any more: a jail shows it, and it goes with its last
        user.
        """
        try:
            yield
        finally:
            while self._names:
                os.unlink(self._names.pop())

    def _memory(self, stack: ExitStack) -> tuple[str, int]:
        """The guest's memory as a file: (path, descriptor). Where a VMM has it elsewhere it is the file that
        saving writes all of it to, at once: on a disk.
        """
        if self._driver.FEATURES.maps_memory and self._disks:
            return self._on_disk(stack)
        size = self._shape.memory_mib << 20
        path, fd = ram.make_file(make_directory(self._directory, "memory"), size, self._uids.vmm)
        stack.callback(os.close, fd)
        return path, fd

    def _virtiofsd(self, stack: ExitStack) -> tuple[Child | None, console.Reader | None, tuple[Share, ...]]:
        if self._tree is None:
            return None, None, ()
        if self._driver.FEATURES.tree:
            return None, None, (Share(tag=SHARE_TAG, fd=self._tree.fd),)
        self._timeline.enter("start virtiofsd")
        # through a pipe, since a guest can make it complain without end and the state directory is memory
        read_end, log_fd = os.pipe2(os.O_CLOEXEC)
        kept = console.BoundedLog(console.open_file(os.path.join(self._directory, "virtiofsd.log")))
        log = console.Reader("virtiofsd", read_end, kept)
        try:
            uid = self._uids.helper
            daemon, share = virtiofs.start(
                self._tree.fd,
                self._directory,
                uid=uid,
                gid=uid,
                log_fd=log_fd,
                open_files=self._open_files,
            )
        finally:
            os.close(log_fd)
        stack.enter_context(daemon)
        stack.enter_context(naming_what_was_denied_to(daemon))
        stack.callback(os.close, share.fd)
        self._record(daemon.pid)
        return daemon, log, (share,)

    def _vmm(self, stack: ExitStack, start: Callable[..., Vmm], spec: VmSpec) -> Vmm:
        self._timeline.enter(f"start {self._driver.FEATURES.label}")
        confinement = Confinement(uid=self._uids.vmm, gid=self._uids.vmm)
        log_fd = console.open_file(os.path.join(self._directory, "console.log"))
        vmm = start(spec, confinement, console_log_fd=log_fd)
        stack.callback(vmm.close)
        self._record(vmm.pid)
        return vmm


@contextmanager
def naming_what_was_denied_to(daemon: Child) -> Iterator[None]:
    """The VMM fails where its share's daemon has ended; that a security module ended it, only the daemon's
    end can tell. The VMM is gone when this unwinds, so the daemon goes too.
    """
    try:
        yield
    except VmmError as error:
        daemon.wait_exit(_SETTLE_S)
        error.hint = daemon.denied or error.hint
        raise


@contextmanager
def _watched(vmm: Vmm, phase: str) -> Iterator[None]:
    """What fails in it is `explained`, with what the VMM said: the threads that read that are gone before
    something is forked again.
    """
    try:
        yield
    except VmmError as error:
        vmm.watch()
        raise explained(vmm, phase, error) from error


def explained(vmm: Vmm, phase: str, error: VmmError) -> VmmError:
    """The reason of a call that failed in `phase`: why the VMM ended, if it has, and not that its channel is
    closed; else the error itself. Its logs are watched.
    """
    return error if vmm.wait_exit(_SETTLE_S) is None else vmm.failure(phase)


def make_directory(parent: str, name: str) -> str:
    """PARENT/NAME, made where it is missing, for helpers to pass through; raises `HostError`."""
    path = os.path.join(parent, name)
    try:
        os.makedirs(path, 0o711, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot create {path}: {error.strerror}", code="state-dir") from error
    return path
