"""The same agent on a host, without a VM: `--fd N --cgroup-root PATH [--machine N --memory N]`. For tests.

It leaves clock, name, entropy and power of the machine alone. `--machine` is the channel of a VMM that has no
machine: what that would do to one, it tells this agent. Its disk is a block device that comes as a
descriptor, its memory a file, which holds what was written to the root file system when it is saved. No
process can be saved so: the container of a saved agent is made anew from the requests that made it, and its
program begins again. Refuses: to run in a VM, whose image does not have it.
"""

from __future__ import annotations

import _socket
import os
import sys

from bufferzone.container import channel
from bufferzone.container.jsontext import encode, loads
from bufferzone.container.loop import READ, warn
from bufferzone.errors import CallerError
from bufferzone.guest import block
from bufferzone.guest.agent import Agent
from bufferzone.linux import process as lp
from bufferzone.wire import agent as wire
from bufferzone.wire.proto import DecodeError, Empty, Message, message, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.guest.server import Reply

#: what the VMM says, with one descriptor: here is the disk; write your state; this is your state
DISK, SAVE, LOAD = b"D", b"S", b"L"
_MOST_STATE = 16 << 20


class Made(Message):
    """The requests that made the container; `create` is None as long as there is none."""

    root: wire.MountRootRequest | None = message(1, wire.MountRootRequest)
    files: list[wire.WriteFileRequest] = messages(2, wire.WriteFileRequest)
    create: wire.CreateRequest | None = message(3, wire.CreateRequest)


class HostedAgent(Agent):
    """Serves `fd` until end of file. `machine_fd`, `memory_fd`: see above, -1: neither."""

    def __init__(self, fd: int, cgroup_root: str, machine_fd: int = -1, memory_fd: int = -1) -> None:
        super().__init__(fd, cgroup_root, [], persistent=False)
        self._memory, self._disk = memory_fd, -1
        self._made, self._saved = Made(), Made()
        if machine_fd >= 0:
            self._machine = _socket.socket(fileno=machine_fd)
            self._machine.setblocking(False)
            self._loop.watch(machine_fd, READ, self._told)

    # ---- what takes a machine

    def _take_identity(self, request: wire.HelloRequest) -> None:
        pass

    def _clock(self, request: wire.SetClockRequest, reply: Reply) -> Message:
        return super()._clock(wire.SetClockRequest(), reply)

    def _prepare_snapshot(self, request: Message, reply: Reply) -> Message:
        return wire.PrepareSnapshotResponse()

    def _zero_free_memory(self, request: Message, reply: Reply) -> Message:
        return Empty()

    def _mount(self, request: wire.MountRequest, reply: Reply) -> Message:
        return Empty()  # whoever started it has shown it the share

    def _network(self, request: Any, reply: Reply) -> Message:
        return Empty()

    def _leave_networks(self) -> None:
        pass

    def _start(self, request: wire.ProcessRef, reply: Reply) -> None:
        self._containers.process(request.id, request.exec_id).start(reply)

    def _stop(self) -> None:
        self._loop.running = False

    # ---- what is remembered, to be done again by an agent that is restored

    def _root(self, request: wire.MountRootRequest, reply: Reply) -> Message:
        if self._disk < 0:
            raise CallerError("no disk was inserted", code="no-disk")
        block.mount_root(request.kind, request.layers, f"/proc/self/fd/{self._disk}")
        os.close(self._disk)  # from now on the mount holds it
        self._disk = -1
        self._made.root = request
        return Empty()

    def _file(self, request: wire.WriteFileRequest, reply: Reply) -> Message:
        done = super()._file(request, reply)
        self._made.files = [file for file in self._made.files if file.name != request.name] + [request]
        return done

    def _create(self, request: wire.CreateRequest, reply: Reply) -> None:
        super()._create(request, reply)
        self._made.create = request

    def _adopt(self, request: wire.AdoptRequest, reply: Reply) -> Message | None:
        """Make the saved container anew, all but its program, which `_resume` begins."""
        saved, self._saved = self._saved, Made()
        if saved.create is None or saved.root is None or saved.create.id != request.id:
            return super()._adopt(request, reply)
        self._root(saved.root, reply)
        _unpack(self._memory)
        for file in saved.files:
            self._file(file, reply)
        config = loads(saved.create.spec, "config.json")
        config["hostname"] = request.hostname
        create = wire.CreateRequest(
            id=request.new_id,
            spec=encode(config),
            seccomp=saved.create.seccomp,
            seccomp_flags=saved.create.seccomp_flags,
            locks=saved.create.locks,
        )
        self._create(create, reply)
        return None

    def _resume(self, request: wire.ProcessRef, reply: Reply) -> None:
        if self._containers.container(request.id).state == "created":
            self._start(request, reply)
        else:
            super()._resume(request, reply)

    # ---- what the VMM says

    def _told(self, events: int) -> None:
        packet = channel.receive(self._machine)
        if packet is None:
            return
        tag, _, fd = packet
        if not tag:
            self._loop.unwatch(self._machine.fileno())
            return
        try:
            self._obey(tag, fd)
        except OSError as error:
            self._machine.send(b"%d %s" % (error.errno or 0, str(error.strerror).encode()))
        except DecodeError as error:
            warn(f"this is not the state of an agent: {error}")
            self._machine.send(b"0 not the state of an agent")
        else:
            self._machine.send(channel.DONE)

    def _obey(self, tag: bytes, fd: int) -> None:
        if tag == DISK:
            self._disk = fd
            return
        try:
            if tag == SAVE:
                _pack(self._memory)
                _write(fd, self._state().encode())
            else:
                self._saved = Made.decode(os.pread(fd, _MOST_STATE, 0))
        finally:
            os.close(fd)

    def _state(self) -> Made:
        """What was made, with the limits that the container has by now."""
        create = self._made.create
        if create is not None:
            config = loads(create.spec, "config.json")
            config.setdefault("linux", {})["resources"] = self._containers.container(create.id).resources
            create.spec = encode(config)
        return self._made


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _pack(memory_fd: int) -> None:
    """What was written to the root file system, as a tar archive in memory that is else empty."""
    import tarfile

    size = os.fstat(memory_fd).st_size
    os.ftruncate(memory_fd, 0)
    os.ftruncate(memory_fd, size)
    os.lseek(memory_fd, 0, os.SEEK_SET)
    with (
        open(os.dup(memory_fd), "r+b") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        archive.add(block.UPPER, ".", filter=_with_attributes)


def _with_attributes(member: Any) -> Any:
    """A member with the attributes that an overlay sets on directories that hide one below."""
    path = os.path.join(block.UPPER, member.name)
    if member.isdir():
        for name in os.listxattr(path, follow_symlinks=False):
            value = os.getxattr(path, name, follow_symlinks=False)
            member.pax_headers[f"SCHILY.xattr.{name}"] = value.decode("latin-1")
    return member


def _unpack(memory_fd: int) -> None:
    import tarfile

    os.lseek(memory_fd, 0, os.SEEK_SET)
    with (
        open(os.dup(memory_fd), "rb") as file,
        tarfile.open(fileobj=file, mode="r") as archive,
    ):
        archive.extraction_filter = lambda member, path: member  # there is no wall that it could keep
        for member in archive:
            archive.extract(member, block.UPPER, numeric_owner=True)
            for key, value in member.pax_headers.items():
                name = key.removeprefix("SCHILY.xattr.")
                if name != key:
                    os.setxattr(os.path.join(block.UPPER, member.name), name, value.encode("latin-1"))


def main() -> None:
    """Be the agent that the arguments describe."""
    options = {sys.argv[at]: sys.argv[at + 1] for at in range(1, len(sys.argv) - 1)}
    lp.become_subreaper()
    os.umask(0o022)
    machine, memory = (int(options.get(name, -1)) for name in ("--machine", "--memory"))
    HostedAgent(int(options["--fd"]), options["--cgroup-root"], machine, memory).serve()
