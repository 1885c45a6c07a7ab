"""How a saved VM's state gets into QEMU, of each version, against a peer that is scripted by the test."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from bufferzone.errors import VmmError
from bufferzone.vmm.qemu import migration
from bufferzone.vmm.qemu.qmp import Qmp


class FakeQemu:
    """Answers as a QEMU of version `major` does; keeps commands, and the inodes of descriptors."""

    def __init__(self, peer: socket.socket, major: int, refused: str = "") -> None:
        self.commands: list[tuple[str, Any]] = []
        self.inodes: list[int] = []
        self._peer, self._refused = peer, refused
        version = {"qemu": {"major": major, "minor": 0, "micro": 0}}
        self._send({"QMP": {"version": version, "capabilities": []}})
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _send(self, message: Any) -> None:
        self._peer.sendall(json.dumps(message).encode() + b"\r\n")

    def _serve(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._peer, 65536, 4)
            except OSError:
                return
            if not data:
                return
            for fd in fds:
                self.inodes.append(os.fstat(fd).st_ino)
                os.close(fd)
            command = json.loads(data)
            self.commands.append((command["execute"], command.get("arguments")))
            answer: Any = {"return": {"status": "completed"}}
            if command["execute"] == self._refused:
                answer = {"error": {"class": "GenericError", "desc": "no"}}
            self._send({**answer, "id": command["id"]})

    def join(self) -> None:
        self._thread.join(60)


Meet = Callable[..., tuple[Qmp, FakeQemu]]


@pytest.fixture
def meet() -> Iterator[Meet]:
    """A client that has greeted a QEMU of this version, and that QEMU."""
    with ExitStack() as stack:

        def made(major: int, refused: str = "") -> tuple[Qmp, FakeQemu]:
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            client, qemu = Qmp(ours), FakeQemu(theirs, major, refused)
            stack.callback(qemu.join)
            stack.callback(client.close)
            client.greet(60)
            return client, qemu

        yield made


@pytest.fixture
def state(tmp_path: Path) -> Iterator[BinaryIO]:
    (tmp_path / "state").write_bytes(b"devices")
    with open(tmp_path / "state", "rb") as file:
        yield file


@pytest.mark.parametrize("major", [7, 10])
def test_a_qemu_before_11_gets_the_file_by_its_descriptor(meet: Meet, state: BinaryIO, major: int) -> None:
    client, qemu = meet(major)
    migration.load(client, state.fileno(), list)
    assert qemu.inodes == [os.fstat(state.fileno()).st_ino]
    assert qemu.commands[-3:] == [
        ("getfd", {"fdname": "state"}),
        ("migrate-incoming", {"uri": "fd:state"}),
        ("query-migrate", None),
    ]


def test_a_later_qemu_opens_the_file_in_a_set_and_keeps_nothing_of_it(meet: Meet, state: BinaryIO) -> None:
    client, qemu = meet(11)
    migration.load(client, state.fileno(), list)
    assert qemu.inodes == [os.fstat(state.fileno()).st_ino]
    assert qemu.commands[-4:] == [
        ("add-fd", {"fdset-id": 2}),
        ("migrate-incoming", {"uri": "file:/dev/fdset/2"}),
        ("query-migrate", None),
        ("remove-fd", {"fdset-id": 2}),
    ]


def test_a_qemu_that_refuses_the_file_is_quoted(meet: Meet, state: BinaryIO) -> None:
    client, _ = meet(11, refused="migrate-incoming")
    with pytest.raises(VmmError, match="refused migrate-incoming: no"):
        migration.load(client, state.fileno(), list)
