"""Calls for file locks that another process is asked about; everything else goes by."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

import pytest

from bufferzone.container import lockcalls
from bufferzone.linux import usernotif
from bufferzone.linux.process import set_no_new_privileges
from bufferzone.wire.locks import EXCLUSIVE, FLOCK, RANGE, SHARED

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64 system calls")


def child(listener_to: int, path: str, go: int) -> None:
    set_no_new_privileges()
    listener = usernotif.listen(lockcalls.COMMANDS)
    os.write(listener_to, struct.pack("i", listener))
    os.read(go, 1)
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_GETFL)  # is not asked about
    said = b""
    for attempt in (
        lambda: fcntl.flock(fd, fcntl.LOCK_EX),
        lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 5, 3),
    ):
        try:
            attempt()
            said += b"%c" % 0
        except OSError as error:
            said += b"%c" % (error.errno or 255)
    os.write(listener_to, said)
    os._exit(0)


@pytest.fixture
def asked(tmp_path):
    """(listener, pid, pipe that the child reports to): a child that is about to ask for two locks."""
    (tmp_path / "f").write_text("text")
    read, write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child(write, str(tmp_path / "f"), go_read)
        finally:
            os._exit(1)
    try:
        raw = os.read(read, 4)
        if len(raw) < 4:
            pytest.skip("no seccomp listener on this machine")
        try:
            listener = usernotif.descriptor_of(pid, struct.unpack("i", raw)[0])
        except OSError as error:
            pytest.skip(f"pidfd_getfd: {error}")
        os.write(go_write, b"x")
        yield listener, pid, read
        os.close(listener)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for fd in (read, write, go_read, go_write):
            os.close(fd)


def next_call(listener: int, pid: int) -> lockcalls.Call:
    assert select.select([listener], [], [], 60)[0]
    asked = usernotif.receive(listener)
    assert asked is not None
    found, fd = lockcalls.target_of(asked)
    assert found == pid
    call = lockcalls.Call(listener, asked, pid, fd)
    lockcalls.understand(call)
    return call


def test_a_call_is_understood_and_answered_or_made_after_all(asked):
    listener, pid, read = asked
    call = next_call(listener, pid)
    assert (call.kind, call.segment[2], call.waits, call.of_file) == (FLOCK, EXCLUSIVE, True, True)
    call.lock_here()
    assert usernotif.answer(listener, call.notification, errno.ENOLCK)
    call.close()
    call = next_call(listener, pid)
    assert (call.kind, call.segment, call.waits, call.of_file) == (RANGE, (3, 8, SHARED), False, False)
    assert usernotif.waits(listener, call.notification)
    assert usernotif.go_on(listener, call.notification)
    call.close()
    assert os.read(read, 2) == bytes([errno.ENOLCK, 0])


def test_a_caller_that_is_gone_is_no_error(asked):
    listener, pid, _ = asked
    call = next_call(listener, pid)
    call.close()
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not usernotif.waits(listener, call.notification)
    assert not usernotif.answer(listener, call.notification)
