"""The guest's side of file locks: what a process gets, what the host is asked for, and what is given back."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

import pytest

from bufferzone.container import lockcalls, lockfiles
from bufferzone.container.container import Container
from bufferzone.container.locks import Broker
from bufferzone.linux import usernotif
from bufferzone.linux.filelock import END
from bufferzone.linux.process import set_no_new_privileges
from bufferzone.wire.locks import EXCLUSIVE, FLOCK, NONE, RANGE, LockResult, LocksRequest

pytestmark = [
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64 system calls"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: memory and descriptors of another process"),
]
TIMEOUT_S = 60


class Loop:
    """The agent's loop, turned by hand."""

    def __init__(self):
        self.callbacks = {}

    def watch(self, fd, events, callback):
        self.callbacks[fd] = callback

    def unwatch(self, fd):
        self.callbacks.pop(fd, None)

    def turn(self, done):
        """Until `done()`."""
        while not done():
            ready = select.poll()
            for fd in self.callbacks:
                ready.register(fd, select.POLLIN)
            events = ready.poll(TIMEOUT_S * 1000)
            assert events, "nothing happens"
            for fd, what in events:
                if fd in self.callbacks:
                    self.callbacks[fd](what)


class Reply:
    """The host, which waits for something to do."""

    awaited = True

    def __init__(self):
        self.steps = []

    def ok(self, message):
        self.steps = message.steps


class Guest:
    """A broker, and a child whose calls for locks it answers. `errors` are the host's next answers."""

    def __init__(self, volume, calls):
        self.loop = Loop()
        self.broker = Broker(self.loop)
        self.broker.volumes._device[os.stat(volume).st_dev] = "v"
        self.seen, self.errors = [], []
        self.reply = Reply()
        self.broker.serve(LocksRequest(first=True), self.reply)
        self.said, write = os.pipe()
        self.go, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                set_no_new_privileges()
                listener = usernotif.listen(lockcalls.COMMANDS)
                os.write(write, struct.pack("i", listener))
                os.read(self.go, 1)
                os.close(listener)
                for call in calls:
                    try:
                        call(str(volume / "f"))
                        os.write(write, b"\0")
                    except OSError as error:
                        os.write(write, bytes([error.errno or 255]))
            finally:
                os._exit(0)
        os.close(write)
        try:
            listener = usernotif.descriptor_of(self.pid, struct.unpack("i", os.read(self.said, 4))[0])
        except (OSError, struct.error) as error:
            os.close(go)
            pytest.skip(f"no seccomp listener on this machine: {error}")
        self.broker.listen(listener)
        os.write(go, b"x")
        os.close(go)

    def host(self):
        """Do what the host was asked to."""
        steps, self.reply = self.reply.steps, Reply()
        results = []
        for step in steps:
            error = self.errors.pop(0) if self.errors and step.mode and not step.forget else 0
            results.append(LockResult(error=error))
            self.seen.append((step.kind, step.mode, step.start, step.end, step.forget))
        self.broker.serve(LocksRequest(results=results), self.reply)

    def run(self, count):
        """Until the child has said `count` words; what it said."""
        words = b""

        def done():
            nonlocal words
            while self.reply.steps:
                self.host()
            if select.select([self.said], [], [], 0)[0]:
                words += os.read(self.said, 64)
            return len(words) >= count

        self.loop.callbacks[self.said] = lambda events: None
        self.loop.turn(done)
        self.loop.unwatch(self.said)
        return list(words)

    def until_forgotten(self):
        def done():
            while self.reply.steps:
                self.host()
            return bool(self.seen) and self.seen[-1][-1]

        self.loop.turn(done)

    def close(self):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


@pytest.fixture
def guest(tmp_path, monkeypatch):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "f").write_text("text")
    monkeypatch.setattr(lockfiles, "SHARE_PATH", str(tmp_path))
    monkeypatch.setattr(lockfiles.filelock, "forget_names", lambda mount_point: None)
    made = []

    def make(*calls):
        made.append(Guest(tmp_path / "v", calls))
        return made[-1]

    yield make
    for one in made:
        one.close()


KEPT = []


def flock(how):
    def call(path):
        KEPT.append(os.open(path, os.O_RDWR))
        fcntl.flock(KEPT[-1], how)

    return call


def lockf(how, length=0, start=0):
    def call(path):
        KEPT.append(os.open(path, os.O_RDWR))
        fcntl.lockf(KEPT[-1], how, length, start)

    return call


def close(path):
    os.close(KEPT.pop())


def test_the_host_has_a_lock_first_and_gets_it_back_when_the_file_is_closed(guest):
    one = guest(flock(fcntl.LOCK_EX), close)
    assert one.run(2) == [0, 0]
    one.until_forgotten()
    assert one.seen[0] == (FLOCK, EXCLUSIVE, 0, END, False)
    assert (FLOCK, NONE, 0, END, False) in one.seen


def test_what_the_host_refuses_is_refused(guest):
    one = guest(flock(fcntl.LOCK_EX | fcntl.LOCK_NB), lockf(fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 3))
    one.errors = [errno.EAGAIN, errno.ENOLCK]
    assert one.run(2) == [errno.EAGAIN, errno.ENOLCK]
    one.until_forgotten()
    assert (RANGE, EXCLUSIVE, 3, 8, False) in one.seen


def test_a_lock_that_waits_is_tried_again_until_the_host_has_it(guest):
    one = guest(flock(fcntl.LOCK_EX), lockf(fcntl.LOCK_EX))
    one.errors = [errno.EAGAIN] * 3
    assert one.run(2) == [0, 0]
    assert one.seen.count((FLOCK, EXCLUSIVE, 0, END, False)) == 4


def test_a_process_that_ends_lets_go_of_everything(guest):
    one = guest(lockf(fcntl.LOCK_EX), flock(fcntl.LOCK_SH))
    assert one.run(2) == [0, 0]
    one.until_forgotten()
    assert (RANGE, NONE, 0, END, False) in one.seen


def test_a_failure_of_ours_is_an_error_of_the_call(guest, monkeypatch):
    def broken(fd):
        raise ValueError("broken")

    monkeypatch.setattr(lockfiles, "refresh_pages", broken)
    one = guest(flock(fcntl.LOCK_EX), lockf(fcntl.LOCK_EX | fcntl.LOCK_NB))
    assert one.run(2) == [errno.ENOLCK, errno.ENOLCK]


def test_what_is_executed_in_a_container_with_volumes_is_heard_too():
    for locks in (True, False):
        assert Container("c", {}, None, None, locks=locks).locks is locks
