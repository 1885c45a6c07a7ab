"""Where a Firecracker and we meet: a small tmpfs of our own mount namespace, in its jail `/run`.

It opens by path what QEMU gets as descriptors, so there are names: its API's socket, the vsock's, the one
that the agent's calls arrive at, two FIFOs for its words and its figures, the device state of a saved VM, and
a file for each disk slot over which an image is mounted once there is one. It is written to by a program that
a guest may have taken over: small, without devices, nothing in it is followed or run, and what is read is
bounded. Our own ways in are through an open directory: a long path of the state directory does not matter.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import ExitStack, contextmanager

from bufferzone.errors import HostError, VmmError
from bufferzone.linux import mount as mnt
from bufferzone.linux import nameless
from bufferzone.linux.ignoring import ignoring
from bufferzone.vmm.firecracker import requests
from bufferzone.vmmfeatures import SLOT_BYTES
from bufferzone.wire.agent import VSOCK_PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bufferzone.model import VmSpec

#: devices take 20 KB; a Firecracker that its guest took over shall not fill the host's memory
MOST_STATE = 4 << 20
_SAFE = mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC
#: a rule of Firecracker's for a guest that calls the host's port (docs/vsock.md)
_CALLS = f"{requests.VSOCK}_{VSOCK_PORT}"
_PIPES = (requests.LOG, requests.METRICS)


class Place:
    """Made for the user `uid` on `spec.directory`, for its disks. Owns the mount, the listening socket and
    both ends of the pipes, until they are given away. Raises `HostError`; then nothing is left.
    """

    def __init__(self, spec: VmSpec, uid: int) -> None:
        self.path, self.fd = spec.directory, -1
        self._owner, self._pipes = uid, list[int]()
        self._calls: socket.socket | None = None
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            options = f"size={2 * MOST_STATE},nr_inodes=16,mode=700,uid={uid},gid={uid}"
            mnt.mount("bufferzone-vmm", self.path, "tmpfs", _SAFE, options)
            self.fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mnt.mount("", self.path, flags=mnt.MS_SHARED)  # an image that comes later appears in the jail too
            self._fill(spec)
        except OSError as error:
            self.close()
            what = f"cannot make a place for the VMM in {spec.directory}: {error.strerror}"
            raise HostError(what, code="vmm-place") from error

    def _fill(self, spec: VmSpec) -> None:
        for disk in spec.disks:
            fd = self._create(requests.slot(disk.name))
            os.ftruncate(fd, SLOT_BYTES)  # holes alone: it costs nothing
            os.close(fd)
        os.close(self._create(requests.STATE))
        for name in _PIPES:
            os.mkfifo(name, 0o600, dir_fd=self.fd)
            os.chown(name, self._owner, self._owner, dir_fd=self.fd, follow_symlinks=False)
            # a reader sees the end when no writer is left: ours stays until there is theirs
            for flags in (os.O_RDONLY, os.O_WRONLY):
                self._pipes.append(os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd))

    def _create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self.fd)
        os.fchown(fd, self._owner, self._owner)
        return fd

    def inside(self, name: str) -> str:
        """A short path to what is in there: a socket's has at most 107 bytes, unix(7)."""
        return f"/proc/self/fd/{self.fd}/{name}"

    def readers(self) -> tuple[int, int]:
        """The ends of both pipes to read from, blocking, the caller's: words, figures."""
        words, figures = self._pipes[0], self._pipes[2]
        self._pipes[0] = self._pipes[2] = -1
        for fd in (words, figures):
            os.set_blocking(fd, True)
        return words, figures

    def release_writers(self) -> None:
        """Firecracker has opened its ends: from now on the readers see when it ends. May be called twice."""
        for fd in self._pipes:
            if fd >= 0:
                os.close(fd)
        self._pipes.clear()

    def listen(self) -> None:
        """Be ready for one call of the agent; at other times nobody can call. Raises `HostError`."""
        calls = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            calls.bind(self.inside(_CALLS))
            os.chown(_CALLS, self._owner, self._owner, dir_fd=self.fd, follow_symlinks=False)
            calls.listen(1)
        except OSError as error:
            calls.close()
            raise HostError(f"cannot listen to the agent: {error.strerror}", code="vmm-place") from error
        self._calls = calls

    def await_call(self, timeout_s: float, ended: int) -> socket.socket:
        """The call that was listened for, as a connected socket; `ended` is readable when none will come.

        Raises VmmError: `agent-timeout`, `agent-lost`.
        """
        assert self._calls is not None
        with ExitStack() as stack:
            calls = stack.enter_context(self._calls)
            stack.callback(os.unlink, _CALLS, dir_fd=self.fd)
            poll = select.poll()
            for fd in (calls.fileno(), ended):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(timeout_s * 1000)]
            if not ready:
                raise VmmError(f"the agent did not call within {timeout_s:g} s", code="agent-timeout")
            if calls.fileno() not in ready:
                raise VmmError("the VMM ended before the agent called", code="agent-lost")
            return calls.accept()[0]

    def show(self, slot: str, fd: int) -> None:
        """Mount the image behind `fd`, read-only, over the file of a disk slot. Raises `HostError`."""
        found = os.fstat(fd)
        if not found.st_mode & 0o004 and found.st_uid != self._owner:
            raise HostError(
                f"Firecracker cannot read the image of a root file system: mode {found.st_mode & 0o777:o}",
                hint="chmod a+r: the VMM has a user of its own and opens it by name",
                code="disk",
            )
        try:
            with _named(fd) as named:
                tree = mnt.open_tree("", at=named, recursive=False)
                try:
                    attributes = mnt.MOUNT_ATTR_RDONLY | mnt.MOUNT_ATTR_NOSUID
                    mnt.set_attributes(tree, add=attributes, recursive=False)
                    mnt.move_mount(tree, requests.slot(slot), at=self.fd)
                finally:
                    os.close(tree)
        except OSError as error:
            raise HostError(f"cannot show an image to Firecracker: {error.strerror}", code="disk") from error

    def write_state(self, source_fd: int) -> None:
        """Put a saved VM's device state where it is loaded from. Raises OSError, `HostError`."""
        data = os.pread(source_fd, MOST_STATE + 1, 0)
        if len(data) > MOST_STATE:
            raise HostError(f"a device state is larger than {MOST_STATE >> 20} MiB", code="vm-state")
        fd = self._open_state(os.O_WRONLY | os.O_TRUNC)
        try:
            _write(fd, data)
        finally:
            os.close(fd)

    def read_state(self, target_fd: int) -> None:
        """Copy the device state that was saved to `target_fd`. Raises OSError, `VmmError`."""
        fd = self._open_state(os.O_RDONLY)
        try:
            data = os.pread(fd, MOST_STATE + 1, 0)
        finally:
            os.close(fd)
        if not 0 < len(data) <= MOST_STATE:
            raise VmmError(f"Firecracker's device state has {len(data)} bytes", code="save-failed")
        _write(target_fd, data)

    def _open_state(self, flags: int) -> int:
        """The file that we made, whatever has its name by now: it is a regular one of ours or an error."""
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(requests.STATE, flags, dir_fd=self.fd)

    def close(self) -> None:
        """Unmount; close everything. May be called twice."""
        self.release_writers()
        if self._calls is not None:
            self._calls.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            with ignoring(errno.EINVAL, errno.ENOENT):  # another mount namespace by now, or it is gone
                mnt.unmount(self.path, mnt.MNT_DETACH | mnt.UMOUNT_NOFOLLOW)


@contextmanager
def _named(fd: int) -> Iterator[int]:
    """While entered, the file behind `fd` has a name, by which the descriptor that this yields was opened.

    One that was made without (O_TMPFILE) gets it beside where it was made, also where it has got another one
    since: no kernel mounts what was opened by none. Raises OSError.

    Source: d_set_mounted in fs/dcache.c of Linux.
    """
    opened_as = os.readlink(f"/proc/self/fd/{fd}")
    if _leads_to(opened_as, fd):
        yield fd
        return
    where = os.path.dirname(opened_as)
    path = os.path.join(where, f"shown-{os.urandom(8).hex()}")
    nameless.give_name(fd, path)
    try:
        named = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield named
        finally:
            os.close(named)
    finally:
        os.unlink(path)


def _leads_to(path: str, fd: int) -> bool:
    """Whether this is a name of what `fd` has open."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
