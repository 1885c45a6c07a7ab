"""Makes templates: boots a VM of the wanted shape with nothing in it, lets the guest settle, stops and saves
it.

Made in the background by a process of its own, after the first cold boot of a shape; whoever starts a
container meanwhile boots cold. The process lives for seconds, holds the maker's lock, and leaves nothing when
killed but a temporary directory that the next `prune` removes.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import ExitStack

from bufferzone import config, jail, log, programs
from bufferzone.errors import BufferzoneError, HostError, VmmError
from bufferzone.guestimage import store as images
from bufferzone.guestimage import template_store
from bufferzone.linux import mount
from bufferzone.linux.ignoring import ignoring
from bufferzone.record import asdict
from bufferzone.storage import ram, share
from bufferzone.vm import cgroups, nic
from bufferzone.vm.launch import VmLauncher, explained, make_directory
from bufferzone.vm.shape import VmShape, describe, from_fields, may_carry, template_key
from bufferzone.vm.size import size_for
from bufferzone.vm.timeline import Timeline
from bufferzone.vmm import drivers
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.vm.launch import RunningVm

_MIB = 1 << 20
_OPEN_FILES = 1024  # of a virtiofsd with nothing to serve
_MOST_LOG = 64 << 10


class Maker:
    """A process that waits for `go` and then makes one template; it ends by itself when we end before
    that. What it has to say is in STORE/maker.log. Raises OSError.
    """

    def __init__(self, shape: VmShape, store: str, run_directory: str, boot_timeout_s: float) -> None:
        order = {
            "shape": asdict(shape),
            "store": store,
            "run_directory": run_directory,
            "boot_timeout_s": boot_timeout_s,
        }
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
    try:
        cgroups.join("", os.getpid())
    except HostError as error:
        log.say(error.line())
    with open(order_fd, "rb") as file:
        order = file.read(1 << 20)
    if not order:
        return 0
    value = json.loads(order)
    if "shape" in value:
        os.nice(10)  # somebody's container is starting
        shape = from_fields(value["shape"])
        make(shape, value["store"], value["run_directory"], value["boot_timeout_s"])
    else:
        _make_by_hand(value)
    return 0


def _make_by_hand(order: dict[str, Any]) -> None:
    def tell(line: str) -> None:
        print(line, flush=True)

    settings = config.load()
    vcpus, memory_mib = order.get("vcpus") or settings.vcpus, order.get("memory_mib") or settings.memory_mib
    size = size_for({}, {}, vcpus=vcpus, memory_mib=memory_mib)
    os.makedirs(order["root"], 0o711, exist_ok=True)
    shape = describe(settings, size, order["root"], tell, nic=nic.has_taps())
    store = template_store.default_store(settings.image_store)
    make(shape, store, order["run_directory"], settings.boot_timeout_s, tell)


def make(
    shape: VmShape,
    store: str,
    run_directory: str,
    boot_timeout_s: float,
    progress: Callable[[str], None] = lambda line: None,
) -> str:
    """Make the template for `shape` unless it is there or being made; returns its key.

    `boot_timeout_s`: seconds for each of the VM's answers. The process must have one thread only. Raises
    `HostError` (`image-damaged`: its files are not what was built) or `VmmError`; then nothing is left.
    """
    try:
        return _make(shape, store, run_directory, boot_timeout_s, progress)
    except OSError as error:
        where = error.filename or store
        raise HostError(
            f"the template cannot be kept: {error.strerror}: {where}", code="template-store"
        ) from error


def _make(
    shape: VmShape,
    store: str,
    run_directory: str,
    boot_timeout_s: float,
    progress: Callable[[str], None],
) -> str:
    key = template_key(shape)
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
        images.verify(shape.image)
        carries = _boot_and_save(shape, directory, run_directory, boot_timeout_s, progress)
        facts = {
            "image": shape.image.digest,
            "accelerator": shape.accelerator,
            "vcpus": shape.vcpus,
            "memory_mib": shape.memory_mib,
            "made_at": int(time.time()),
            template_store.SHARE: carries,
            "took_s": round(time.monotonic() - began, 2),
        }
        is_mapped = drivers.find(shape.vmm).FEATURES.maps_memory
        template_store.publish(store, key, directory, facts, is_mapped=is_mapped)
        progress(f"made template {key} in {facts['took_s']} s")
    template_store.prune(store, keep=template_store.KEEP, most_bytes=template_store.MOST_BYTES)
    return key


def _boot_and_save(
    shape: VmShape,
    directory: str,
    run_directory: str,
    boot_timeout_s: float,
    progress: Callable[[str], None],
) -> bool:
    """Make both files in `directory`; returns whether the guest has the device of its share in them."""
    share.own_namespace()  # what is mounted here goes when this process does
    if may_carry(shape):
        try:
            _boot_once(shape, directory, run_directory, boot_timeout_s, carries=True)
            return True
        except VmmError as error:
            progress(f"VMM and virtiofsd cannot save a share, it will be plugged: {error.line()}")
    _boot_once(shape, directory, run_directory, boot_timeout_s, carries=False)
    return False


def _boot_once(
    shape: VmShape, directory: str, run_directory: str, boot_timeout_s: float, *, carries: bool
) -> None:
    """One try; what it needs beside the two files is gone when it returns."""
    import shutil  # only the maker needs it, every start this module

    size = shape.memory_mib * _MIB
    with ExitStack() as stack:
        uids = stack.enter_context(jail.allocate_uid(run_directory))
        workplace = make_directory(directory, "vm")
        stack.callback(shutil.rmtree, workplace)
        stack.callback(_unmount_memory, workplace)
        tree = stack.enter_context(share.Tree(make_directory(workplace, "share"))) if carries else None
        launcher = VmLauncher(
            "template",
            shape,
            workplace,
            uids=uids,
            tree=tree,
            nic_fd=nic.idle(stack, shape),
            open_files=_OPEN_FILES,
            timeline=Timeline(),
        )
        vm = launcher.boot(stack, in_file=True, carries_share=carries)
        vm.watch()
        vm.agent.start()
        vm.greet(boot_timeout_s)
        try:
            _prepare_and_save(vm, size, directory, boot_timeout_s, stack)
        except VmmError as error:
            raise explained(vm.vmm, "make the template", error) from error
        vm.kill()
        vm.vmm.wait_exit()
        packed_fd = _create(stack, directory, template_store.MEMORY)
        os.ftruncate(packed_fd, size)
        ram.pack(vm.memory_fd, packed_fd)


def _prepare_and_save(
    vm: RunningVm, size: int, directory: str, boot_timeout_s: float, stack: ExitStack
) -> None:
    """Have the guest come to rest, give back what it does not need, and write its devices."""
    hello = agent.HelloRequest(entropy=os.urandom(64), hostname="template")
    vm.agent.call("Hello", hello, agent.HelloResponse, timeout_s=boot_timeout_s)
    prepared = vm.agent.call(
        "PrepareSnapshot", Empty(), agent.PrepareSnapshotResponse, timeout_s=boot_timeout_s
    )
    # without a balloon the guest would have to touch all that is free, and dies of it; where clones map the
    # file, what they do not read of it costs them nothing
    if vm.vmm.features.balloon:
        with vm.vmm.squeezed(memory=size, free=min(prepared.free, size)):
            vm.agent.call("ZeroFreeMemory", Empty(), Empty, timeout_s=boot_timeout_s)
    vm.vmm.save(_create(stack, directory, template_store.STATE))


def _create(stack: ExitStack, directory: str, name: str) -> int:
    """A file of the template, empty; the first try may have left one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(os.path.join(directory, name), flags, 0o600)
    stack.callback(os.close, fd)
    return fd


def _unmount_memory(workplace: str) -> None:
    with ignoring(errno.ENOENT, errno.EINVAL):  # it did not come so far
        mount.unmount(os.path.join(workplace, "memory"), mount.MNT_DETACH)
