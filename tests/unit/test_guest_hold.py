"""A held agent: what was asked before is answered to the same host, or to nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.errors import NotFoundError
from bufferzone.storage import ram
from bufferzone.wire import agent as wire
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

READ = wire.ReadRequest(id="c", stream=wire.STDOUT)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with running_guest() as guest:
        guest.create("c", make_spec(make_rootfs(tmp_path / "rootfs"), "cat"))
        guest.start("c")
        yield guest


@needs_root
def test_released_it_answers_what_waited(guest: Guest) -> None:
    pending = guest.send("Read", READ)
    guest.call("Hold")
    guest.call("Release")
    guest.write(b"x", "c")
    assert guest.result(pending, wire.ReadResponse).data == b"x"


@needs_root
def test_another_connection_gets_the_bytes_and_no_old_answers(guest: Guest) -> None:
    pending = guest.send("Read", READ)
    guest.call("Hold")
    guest.send("WaitOom")  # whatever comes first begins the next connection
    guest.call("Hello", wire.HelloRequest())
    guest.write(b"x", "c")
    assert guest.read("c") == b"x"
    assert not guest.answered(pending)
    guest.call("Adopt", wire.AdoptRequest(id="c", new_id="d"))
    with pytest.raises(NotFoundError):
        guest.wait("c")
    guest.signal("d", 9)
    assert guest.wait("d").signal == 9


def test_a_digest_is_of_the_bytes_and_not_of_the_holes(tmp_path: Path) -> None:
    size = 1 << 20
    sparse = os.open(tmp_path / "sparse", os.O_RDWR | os.O_CREAT)
    os.ftruncate(sparse, size)
    os.pwrite(sparse, b"data", 300_001)
    full = os.open(tmp_path / "full", os.O_RDWR | os.O_CREAT)
    os.pwrite(full, os.pread(sparse, size, 0), 0)
    assert ram.digest(sparse, size) == ram.digest(full, size)
    os.pwrite(full, b"e", 300_001)
    assert ram.digest(sparse, size) != ram.digest(full, size)
    moved = os.open(tmp_path / "moved", os.O_RDWR | os.O_CREAT)
    os.ftruncate(moved, size)
    os.pwrite(moved, b"data", 300_001 + (64 << 10))
    assert ram.digest(sparse, size) != ram.digest(moved, size)
    for fd in (sparse, full, moved):
        os.close(fd)
