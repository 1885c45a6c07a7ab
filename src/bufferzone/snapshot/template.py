"""Makes templates: boots a VM of the wanted shape with nothing in it, lets the guest settle, stops and saves
it.

Made in the background by a process of its own, after the first cold boot of a shape; whoever starts a
container meanwhile boots cold. The process lives for seconds, holds the maker's lock, and leaves nothing when
killed but a temporary directory that the next `prune` removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict

from bufferzone import config, jail, programs
from bufferzone.errors import BufferzoneError, HostError, VmmError
from bufferzone.guestimage import store as images
from bufferzone.guestimage import template_store
from bufferzone.linux import mount
from bufferzone.model import Confinement
from bufferzone.sandbox import network
from bufferzone.sandbox.plan import plan_vm
from bufferzone.storage import ram, share, virtiofs
from bufferzone.vm import cgroups
from bufferzone.vm.agent_client import AgentClient
from bufferzone.vm.shape import Machine, describe, from_fields, may_carry, spec_of, template_key
from bufferzone.vmm import drivers
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.model import Share

_MIB = 1 << 20
_MOST_LOG = 64 << 10
_OPEN_FILES = 1024  # of a virtiofsd with nothing to serve


class Maker:
    """A process that waits for `go` and then makes one template; it ends by itself when we end before
    that. What it has to say is in STORE/maker.log. Raises OSError.
    """

    def __init__(self, machine: Machine, store: str, run_directory: str) -> None:
        order = {"machine": asdict(machine), "store": store, "run_directory": run_directory}
        self._order = json.dumps(order).encode()
        read_end, self._write = os.pipe2(os.O_CLOEXEC)
        try:
            actions = [
                (os.POSIX_SPAWN_DUP2, read_end, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, *_log_of(store), 0o600),
            ]
            argv = programs.argv("shim", "template")
            self.pid = os.posix_spawn(argv[0], argv, {}, file_actions=actions, setsid=True)
        except BaseException:
            self.cancel()
            raise
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


def _log_of(store: str) -> tuple[str, int]:
    """The makers' log and how to open it: at most `_MOST_LOG` bytes are kept."""
    os.makedirs(store, 0o700, exist_ok=True)
    path = os.path.join(store, "maker.log")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        return path, flags | (os.O_TRUNC if os.stat(path).st_size > _MOST_LOG else 0)
    except FileNotFoundError:
        return path, flags


def run_maker(order_fd: int) -> int:
    """The maker's process; returns the exit status. `order_fd` gives, as JSON, what `go` sent, or the
    `vcpus` and `memory_mib` that a person asked for: then progress goes to stdout.
    """
    # it outlives the container, whose bundle and cgroup must be free to go when that does
    os.chdir("/")
    os.umask(0o077)
    with contextlib.suppress(HostError):
        cgroups.join("", os.getpid())
    with open(order_fd, "rb") as file:
        order = file.read(1 << 20)
    if not order:
        return 0
    value = json.loads(order)
    if "machine" in value:
        os.nice(10)  # somebody's container is starting
        make(from_fields(value["machine"]), value["store"], value["run_directory"])
    else:
        _make_by_hand(value)
    return 0


def _make_by_hand(order: dict[str, Any]) -> None:
    def tell(line: str) -> None:
        print(line, flush=True)

    settings = config.load()
    vcpus, memory_mib = order.get("vcpus") or settings.vcpus, order.get("memory_mib") or settings.memory_mib
    size = plan_vm({}, {}, vcpus=vcpus, memory_mib=memory_mib)
    os.makedirs(order["root"], 0o711, exist_ok=True)
    machine = describe(settings, size, order["root"], tell, nic=network.has_taps())
    make(machine, template_store.default_store(settings.image_store), order["run_directory"], tell)


def make(
    machine: Machine, store: str, run_directory: str, progress: Callable[[str], None] = lambda line: None
) -> str:
    """Make the template for `machine` unless it is there or being made; returns its key.

    The process must have one thread only. Raises `HostError` (`image-damaged`: its files are not what was
    built) or `VmmError`; then nothing is left.
    """
    try:
        return _make(machine, store, run_directory, progress)
    except OSError as error:
        where = error.filename or store
        raise HostError(
            f"the template cannot be kept: {error.strerror}: {where}", code="template-store"
        ) from error


def _make(machine: Machine, store: str, run_directory: str, progress: Callable[[str], None]) -> str:
    key = template_key(machine)
    with template_store.making(store, key) as directory:
        if directory is None:
            progress(f"template {key} is being made by another process")
            return key
        try:
            found = template_store.open_template(store, key)
            if found is not None:
                found.close()
                progress(f"template {key} is there")
                return key
        except BufferzoneError as error:
            progress(error.line())  # damaged: it is replaced
        began = time.monotonic()
        images.verify(machine.image)  # here nobody waits: a start looks at sizes alone
        carries = _boot_and_save(machine, directory, run_directory, progress)
        facts = {
            "image": machine.image.digest,
            "accelerator": machine.accelerator,
            "vcpus": machine.vcpus,
            "memory_mib": machine.memory_mib,
            "made_at": int(time.time()),
            template_store.SHARE: carries,
            "took_s": round(time.monotonic() - began, 2),
        }
        template_store.publish(store, key, directory, facts)
        progress(f"made template {key} in {facts['took_s']} s")
    template_store.prune(store, keep=template_store.KEEP, most_bytes=template_store.MOST_BYTES)
    return key


def _boot_and_save(
    machine: Machine, directory: str, run_directory: str, progress: Callable[[str], None]
) -> bool:
    """Make both files in `directory`; returns whether the guest has the device of its share in them."""
    share.own_namespace()  # what is mounted here goes when this process does
    if may_carry(machine):
        try:
            _boot_once(machine, directory, run_directory, carries=True)
            return True
        except VmmError as error:
            progress(f"this QEMU and virtiofsd cannot save a share, it will be plugged: {error.line()}")
    _boot_once(machine, directory, run_directory, carries=False)
    return False


def _empty_share(stack: ExitStack, directory: str, uid: int) -> Share:
    """A share as a sandbox has one, with nothing in it."""
    place = os.path.join(directory, "share")
    os.mkdir(place, 0o711)
    stack.callback(os.rmdir, place)
    tree = stack.enter_context(share.Tree(place))
    log_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        daemon, shared = virtiofs.start(
            tree.fd, directory, uid=uid, gid=uid, log_fd=log_fd, open_files=_OPEN_FILES
        )
    finally:
        os.close(log_fd)
    stack.enter_context(daemon)
    stack.callback(os.close, shared.fd)
    return shared


def _boot_once(machine: Machine, directory: str, run_directory: str, *, carries: bool) -> None:
    size = machine.memory_mib * _MIB
    with ExitStack() as stack:
        uids = stack.enter_context(jail.allocate_uid(run_directory))
        workplace = os.path.join(directory, "ram")
        os.mkdir(workplace, 0o711)
        stack.callback(os.rmdir, workplace)
        memory, memory_fd = ram.make_file(workplace, size, uids.vmm)
        stack.callback(mount.unmount, workplace, mount.MNT_DETACH)
        stack.callback(os.close, memory_fd)
        shares = (_empty_share(stack, directory, uids.helper),) if carries else ()
        tap = network.idle(stack, machine)
        vm = spec_of(machine, "template", shares=shares, memory=memory, carries_share=carries, tap=tap)
        vmm = drivers.find(machine.vmm).start(vm, Confinement(uid=uids.vmm, gid=uids.vmm))
        stack.callback(vmm.close)
        vmm.watch()
        client = AgentClient(vmm.agent)
        stack.callback(client.close)
        client.start()
        vmm.greet()
        hello = agent.HelloRequest(entropy=os.urandom(64), hostname="template")
        client.call("Hello", hello, agent.HelloResponse, timeout_s=120)
        prepared = client.call("PrepareSnapshot", Empty(), agent.PrepareSnapshotResponse, timeout_s=60)
        with (
            vmm.squeezed(memory=size, free=min(prepared.free, size))
            if vmm.features.balloon
            else nullcontext()
        ):
            client.call("ZeroFreeMemory", Empty(), Empty, timeout_s=60)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC  # not the first try, perhaps
        state_fd = os.open(os.path.join(directory, template_store.STATE), flags, 0o600)
        stack.callback(os.close, state_fd)
        vmm.save(state_fd)
        vmm.kill()
        vmm.wait_exit()
        packed_fd = os.open(os.path.join(directory, template_store.MEMORY), flags, 0o600)
        stack.callback(os.close, packed_fd)
        os.ftruncate(packed_fd, size)
        ram.pack(memory_fd, packed_fd)
