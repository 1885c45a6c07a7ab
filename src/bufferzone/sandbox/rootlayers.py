"""The image of a root file system that is an overlay: its lower layers as one image, made once and used by
every container of the same layers; what is small on top of them, such as what engines write before a start,
is sent to the guest as layers.

A child of ours looks at the layers while the VM starts, and packs where there is no image. It lives until the
image is there and answers on a socket; it mounts in a mount namespace of its own, containerd's mounts too,
which come when the VM runs already and we have threads. One image for all lower
layers, not one for each: a jailed mkfs.erofs cannot read trusted.overlay.opaque, so the host's overlay puts
them together; a VMM needs one slot, as a template has, and the guest reads from one disk. Whatever is not
understood makes it one directory, packed for this container alone.
Source: docs/block-rootfs.md.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from contextlib import ExitStack
from functools import partial

from bufferzone import spawn
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.linux import mount as mnt
from bufferzone.linux import process
from bufferzone.linux.ignoring import ignoring
from bufferzone.log import debug, line_of, say
from bufferzone.record import Record
from bufferzone.sandbox import rootmounts
from bufferzone.storage import erofs, layers, overlay, share
from bufferzone.storage.rootcache import Cache
from bufferzone.wire import agent, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: raise it when an image of the same layers becomes another
_VERSION = 1
#: what the caller may have written; and what a lower layer may have that is sent in place of being packed:
#: Docker has one for each container (NAME-init)
_UPPER, _SMALL = layers.Room(entries=1024, bytes=512 << 10), layers.Room(entries=64, bytes=64 << 10)
_MOST_SENT = 4
_DONE, _FAILED = b"+", b"-"
_SAFE = mnt.MS_RDONLY | mnt.MS_NOSUID | mnt.MS_NODEV


class Order(Record):
    """What is to be packed: the directory `rootfs`, an overlay, into an image of at most `most` bytes, by a
    mkfs.erofs that is user `uid`. Images are kept in the directory `kept`, up to `kept_bytes`; `disks` is
    for one that is not kept. `overlay` None: what `rootfs` is, is told later, see `Layered.tell`.
    """

    rootfs: str
    overlay: overlay.Overlay | None
    uid: int
    most: int
    disks: str
    kept: str
    kept_bytes: int


class Layered:
    """The child at work, as `erofs.Packing`. `layers`: what belongs above the image, the topmost first."""

    def __init__(self, order: Order) -> None:
        """One thread only. Raises `HostError`; then nothing is left."""
        self.layers: list[agent.Layer] = []
        self._until, self._rootfs = time.monotonic() + erofs.DEADLINE_S, order.rootfs
        self.awaits_mounts = order.overlay is None
        self._socket, there = socket.socketpair()
        with there:
            try:
                enter = partial(_enter, there.fileno(), partial(_make, order, there.fileno()))
                self._child = spawn.start("the process that packs layers", ["-"], enter)
            except BaseException:
                self._socket.close()
                raise

    def tell(self, mounts: list[task.Mount]) -> None:
        """What the child, which waits for this, is to mount at `rootfs` first; nothing: that is to be packed
        as it is. That the child died is told by `image`.
        """
        self.awaits_mounts, self._until = False, time.monotonic() + erofs.DEADLINE_S
        with ignoring(errno.EPIPE, errno.ENOTCONN):
            self._socket.sendall(_DONE + task.CreateTaskRequest(rootfs=mounts).encode())
            self._socket.shutdown(socket.SHUT_WR)

    def image(self) -> int:
        """Wait for the end; a read-only descriptor of the image, the caller's. Raises `HostError`."""
        fds = list[int]()
        if self.awaits_mounts:
            self.tell([])
        try:
            self._wait()
            first, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
            text = _rest(self._socket)
            if first == _DONE and fds:
                self.layers = agent.MountRootRequest.decode(text).layers
                return fds.pop()
            if first == _FAILED:
                raise HostError(**json.loads(text))
            raise HostError(f"{self._child.name} died", hint=self._hint(), code="pack")
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """End it. May be called twice."""
        self._child.close()
        self._socket.close()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(max(0.0, self._until - time.monotonic()) * 1000):
            self._child.kill()
            text = f"cannot pack {self._rootfs} into an image: not done after {erofs.DEADLINE_S:g} s"
            raise HostError(text, hint="rootfs = virtiofs", code="pack")

    def _hint(self) -> str:
        self._child.wait_exit()
        return self._child.denied or "rootfs = virtiofs"


def _rest(of: socket.socket) -> bytes:
    parts = list[bytes]()
    while part := of.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def _enter(
    fd: int, make: Callable[[], tuple[int, list[agent.Layer]]], talk: spawn.Conversation
) -> Callable[[], object]:
    """The child's beginning: nothing of the shim's is open in it, and it ends with the shim."""
    process.set_name("bufferzone-pack")
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1):
        os.dup2(null, number)
    process.close_all_but(fd, *talk.descriptors)
    process.die_with_parent()
    talk.ask("go")  # the question finds out whether the parent died before
    return partial(_live, fd, make, talk)


def _live(fd: int, make: Callable[[], tuple[int, list[agent.Layer]]], talk: spawn.Conversation) -> None:
    """Make the image, answer, end."""
    for number in talk.descriptors:
        os.close(number)
    answer, fds = _DONE, []
    try:
        image, above = make()
        fds, text = [image], agent.MountRootRequest(layers=above).encode()
    except BufferzoneError as error:
        value = {"message": error.message, "hint": error.hint, "code": error.code}
        answer, text = _FAILED, json.dumps(value).encode()
    with socket.socket(fileno=fd) as there:
        socket.send_fds(there, [answer], fds)
        there.sendall(text)
    os._exit(0)


def _make(order: Order, fd: int) -> tuple[int, list[agent.Layer]]:
    """(the image, what belongs above it). Raises `HostError`."""
    mounts = _told(fd) if order.overlay is None else []
    try:  # before we leave the mount namespace, for its mount
        cache = Cache(order.kept, order.kept_bytes) if order.kept_bytes else None
    except HostError as error:
        cache = None
        say(f"root file system: packed for this container alone: {error.line()}")
    place = cache.place if cache else _opened(order.disks)
    share.own_namespace()
    rootmounts.mount(mounts, order.rootfs, ExitStack())  # which goes with our namespace
    return _kept(order, cache) if cache else (_pack(order, place), [])


def _told(fd: int) -> list[task.Mount]:
    """What is to be mounted, once somebody tells it."""
    with socket.socket(fileno=os.dup(fd)) as there:
        text = _rest(there)
    if text[:1] != _DONE:
        os._exit(1)  # nobody needs it any more
    return task.CreateTaskRequest.decode(text[1:]).rootfs


def _opened(directory: str) -> str:
    """A path to the directory, of this process, by the mount that it is on now. Raises `HostError`."""
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        return f"/proc/self/fd/{os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)}"
    except OSError as error:
        raise HostError(f"cannot make an image in {directory}: {error.strerror}", code="pack") from error


def _kept(order: Order, cache: Cache) -> tuple[int, list[agent.Layer]]:
    """The image of the overlay's layers, from the cache or for it, and what belongs above; of anything else
    one for this container alone.
    """
    try:
        of = order.overlay or overlay.find(order.rootfs)
        if of is None:
            raise overlay.Unknown(f"no overlay: {order.rootfs}")
        overlay.check_shown(of, order.rootfs)
        above, below = _split(of)
        options = of.options if len(below) > 1 else ()
        found = layers.fingerprint(below, _salt(options))
        image = cache.open(found.digest)
        if image >= 0:
            debug(f"root file system: the image {found.digest[:12]}, {len(above)} layers on top")
            return image, above
        _cover(order.rootfs, below, options)
    except (overlay.Unknown, OSError) as error:
        debug(f"root file system: packed for this container alone: {line_of(error)}")
        return _pack(order, cache.place), []
    image = _pack(order, cache.place)
    _keep(cache, image, found, lambda: layers.fingerprint(below, _salt(options)))
    return image, above


def _split(of: overlay.Overlay) -> tuple[list[agent.Layer], tuple[str, ...]]:
    """(what is sent, the directories that are packed), the topmost first."""
    above = [layers.read(of.upper, of.prefix, _UPPER)] if of.upper else []
    below = of.lowers
    while len(below) > 1 and len(above) < _MOST_SENT:
        try:
            above.append(layers.read(below[0], of.prefix, _SMALL))
        except overlay.Unknown:
            break  # it is not small
        below = below[1:]
    return above, below


def _salt(options: tuple[str, ...]) -> str:
    """What an image depends on besides the layers."""
    program = erofs.find_program()
    found = os.stat(program)
    return repr((_VERSION, program, found.st_size, found.st_mtime_ns, options))


def _cover(rootfs: str, below: tuple[str, ...], options: tuple[str, ...]) -> None:
    """Have `rootfs` show these layers alone, in our mount namespace."""
    if len(below) == 1:
        mnt.mount(below[0], rootfs, flags=mnt.MS_BIND)
        return
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in below]
    try:  # by number: mount(2) takes one page of options, and a path may have a comma
        data = ",".join((*options, "lowerdir=" + ":".join(f"/proc/self/fd/{fd}" for fd in fds)))
        mnt.mount("overlay", rootfs, "overlay", _SAFE, data)
    finally:
        for fd in fds:
            os.close(fd)


def _pack(order: Order, directory: str) -> int:
    packing = erofs.pack(order.rootfs, directory, uid=order.uid, most=order.most)
    try:
        return packing.image()
    finally:
        packing.close()


def _keep(
    cache: Cache, image: int, found: layers.Fingerprint, again: Callable[[], layers.Fingerprint]
) -> None:
    """Keep it if it is of the layers that the fingerprint is of, for certain. What fails costs the next start
    the time."""
    try:
        if found.is_settled and again().digest == found.digest:
            cache.keep(image, found.digest)
        else:
            debug("root file system: its image is not kept: a layer was written just now")
    except (overlay.Unknown, OSError) as error:
        debug(f"root file system: its image is not kept: {line_of(error)}")
