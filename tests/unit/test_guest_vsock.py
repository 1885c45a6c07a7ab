"""The agent's channel over a vsock: who chooses it, what a kernel without one says, and a call made anew."""

from __future__ import annotations

import _socket
import errno
import os
import socket

import pytest

from bufferzone.container.loop import Loop
from bufferzone.errors import GuestError
from bufferzone.guest import vsock
from bufferzone.guest.server import Server
from bufferzone.wire import agent as wire
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import Empty


def test_the_kernels_command_line_chooses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for line, chosen in (("quiet bufferzone.channel=vsock x", True), ("bufferzone.channel=vsocket", False)):
        monkeypatch.setattr(vsock, "read", lambda path, line=line: line)
        assert vsock.is_chosen() is chosen


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.ENODEV])
def test_a_kernel_without_one_says_so(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_socket, "socket", none)
    with pytest.raises(GuestError, match="this kernel has no vsock") as caught:
        vsock.connect()
    assert caught.value.code == "no-vsock"


class Calls:
    """An agent's server whose connection is made anew: `hosts` are our ends, in order."""

    def __init__(self) -> None:
        self.hosts: list[socket.socket] = []
        self.loop = Loop(lambda: None)
        self.server = Server(self.loop, self.call(), self.handle, persistent=True, reconnect=self.call)

    def call(self) -> int:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.hosts.append(ours)
        return theirs.detach()

    def handle(self, method: str, request: object, reply: object) -> Empty | None:
        if method == "Hold":
            reply.hold()
            return None
        if method == "Release":
            self.server.release()
        return Empty()

    def ask(self, method: str, stream: int) -> int:
        """Ask on the newest connection; the stream of the answer."""
        request = ttrpc.Request(service=wire.SERVICE, method=method, payload=b"")
        self.hosts[-1].sendall(ttrpc.encode_frame(stream, ttrpc.REQUEST, request.encode()))
        self.loop.run_once()
        self.server.flush()
        (frame,) = ttrpc.FrameReader().feed(self.hosts[-1].recv(1 << 16))
        return frame.stream


@pytest.fixture
def calls():
    agent = Calls()
    yield agent
    for host in agent.hosts:
        host.close()
    os.close(agent.server._fd)


def test_a_connection_that_was_lost_is_made_anew_and_serves(calls: Calls) -> None:
    assert calls.ask("Hello", 1) == 1
    calls.hosts[-1].close()
    calls.loop.run_once()
    assert len(calls.hosts) == 2
    assert calls.ask("Hello", 3) == 3


def test_one_that_was_held_goes_on_where_it_was_with_the_next_connection(calls: Calls) -> None:
    session = calls.server.session
    calls.ask("Hold", 1)
    calls.hosts[-1].close()
    calls.loop.run_once()
    assert (calls.server.held, calls.server.session) == (True, session)
    calls.ask("Release", 3)
    assert (calls.server.held, calls.server.session) == (False, session)


def test_another_host_on_the_next_connection_ends_what_was_held(calls: Calls) -> None:
    session = calls.server.session
    calls.ask("Hold", 1)
    calls.hosts[-1].close()
    calls.loop.run_once()
    calls.ask("Hello", 1)
    assert (calls.server.held, calls.server.session) == (False, session + 1)
