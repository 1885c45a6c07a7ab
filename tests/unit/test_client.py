"""The blocking client against a peer that is a few lines of thread."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from bufferzone import state
from bufferzone.client import container, handshake, removal
from bufferzone.client.connection import Client
from bufferzone.errors import BugError, ExecError, HostError, NotFoundError, StateError, VmmError
from bufferzone.wire import task, ttrpc
from bufferzone.wire.proto import Empty


class Peer:
    """Answers one connection: `answer(request, fds)` returns bytes to send, or None to hang up."""

    def __init__(self, path, answer):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.answer = answer
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        sock, _ = self.listener.accept()
        with sock, self.listener:
            reader, held = ttrpc.FrameReader(), []
            while True:
                data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 8)
                held += fds
                if not data:
                    return
                for frame in reader.feed(data):
                    reply = self.answer(frame, held)
                    held = []
                    if reply is None:
                        return
                    sock.sendall(reply)


def response(frame, message=None, error=None):
    body = (
        ttrpc.Response(payload=message.encode())
        if error is None
        else ttrpc.Response(status=ttrpc.status_of(error))
    )
    return ttrpc.encode_frame(frame.stream, ttrpc.RESPONSE, body.encode())


@pytest.fixture
def serve(tmp_path):
    peers = []

    def start(answer):
        path = str(tmp_path / "shim.sock")
        peers.append(Peer(path, answer))
        return path

    yield start
    for peer in peers:
        peer.thread.join(10)
        assert not peer.thread.is_alive()


def test_a_call_returns_the_methods_response(serve):
    seen = []

    def answer(frame, fds):
        request = ttrpc.Request.decode(frame.payload)
        seen.append((request.service, request.method, task.WaitRequest.decode(request.payload).id))
        return response(frame, task.WaitResponse(exit_status=7))

    with Client.connect(serve(answer)) as client:
        assert client.call("Wait", task.WaitRequest(id="one")).exit_status == 7
        assert client.call("Wait", task.WaitRequest(id="two")).exit_status == 7
    assert seen == [(task.SERVICE, "Wait", "one"), (task.SERVICE, "Wait", "two")]


def test_descriptors_travel_with_the_request(serve):
    reader, writer = os.pipe()

    def answer(frame, fds):
        os.write(fds[1], b"through the guest")
        for fd in fds:
            os.close(fd)
        return response(frame, Empty())

    with Client.connect(serve(answer)) as client:
        client.call("Exec", task.ExecProcessRequest(id="x" * 100_000), fds=[reader, writer])
    os.close(writer)
    assert os.read(reader, 100) == b"through the guest"
    os.close(reader)


@pytest.mark.parametrize(
    "error",
    [
        StateError("container not running", code="not-running"),
        ExecError("not executable", hint="chmod", code="exec-not-executable"),
    ],
)
def test_a_refusal_is_our_own_exception_again(serve, error):
    with (
        Client.connect(serve(lambda frame, fds: response(frame, error=error))) as client,
        pytest.raises(type(error)) as caught,
    ):
        client.call("Kill", task.KillRequest(id="one"))
    assert (caught.value.message, caught.value.hint, caught.value.code) == (
        error.message,
        error.hint,
        error.code,
    )


def test_a_shim_that_ends_in_a_call_is_told_as_such(serve):
    with Client.connect(serve(lambda frame, fds: None)) as client, pytest.raises(VmmError) as caught:
        client.call("Wait", task.WaitRequest(id="one"))
    assert caught.value.code == "shim-ended"


def test_a_shim_that_does_not_answer_in_time_is_told_as_such(serve):
    with (
        Client.connect(serve(lambda frame, fds: b"")) as client,
        pytest.raises(VmmError, match="did not answer Wait in time") as caught,
    ):
        client.call("Wait", task.WaitRequest(id="one"), timeout_s=0.05)
    assert caught.value.code == "shim-timeout"


@pytest.mark.parametrize("reply", [b"\xff" * 10, b"HTTP/1.1 400 Bad"])
def test_bytes_that_are_not_ttrpc_are_a_bug_not_a_crash(serve, reply):
    with (
        Client.connect(serve(lambda frame, fds: reply)) as client,
        pytest.raises(BugError, match="malformed"),
    ):
        client.call("Wait", task.WaitRequest(id="one"))


def test_a_response_that_does_not_decode_is_a_bug_not_a_crash(serve):
    def answer(frame, fds):
        return ttrpc.encode_frame(frame.stream, ttrpc.RESPONSE, b"\x0a\xff")

    with Client.connect(serve(answer)) as client, pytest.raises(BugError, match="malformed"):
        client.call("Wait", task.WaitRequest(id="one"))


def test_nobody_listening_means_the_shim_is_gone(tmp_path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "shim.sock"))
    stale.close()
    for path in (tmp_path, tmp_path / "shim.sock", tmp_path / "none"):
        with pytest.raises(HostError) as caught:
            Client.connect(str(path))
        assert caught.value.code == "shim-gone"


def test_only_the_first_line_is_told_to_who_waits_for_one():
    reader, writer = os.pipe()
    ready = handshake.Ready(os.dup(writer))
    number = ready._fd
    ready.say(b"ready\n")
    os.dup2(writer, number)  # something else has that number now
    ready.say(b"an error\n")
    os.close(writer)
    os.close(number)
    assert os.read(reader, 100) == b"ready\n"
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_state_directory_that_cannot_be_opened_is_not_one_that_is_gone(tmp_path):
    removal.remove(str(tmp_path / "gone"), "gone", force=True, program="")
    (tmp_path / "odd").symlink_to("odd")
    with pytest.raises(HostError, match=r"cannot open .*/odd: Too many levels"):
        removal.remove(str(tmp_path / "odd"), "odd", force=True, program="")


def test_a_path_longer_than_a_socket_address_works(tmp_path):
    directory = state.create(str(tmp_path / ("deep" * 30)), "one")
    before = os.getcwd()
    os.chdir(directory)
    try:
        peer = Peer("shim.sock", lambda frame, fds: response(frame, task.WaitResponse(exit_status=1)))
    finally:
        os.chdir(before)
    with Client.connect(directory) as client:
        assert client.call("Wait", task.WaitRequest(id="one")).exit_status == 1
    peer.thread.join(10)


def test_a_process_of_which_no_descriptor_can_be_had_has_not_ended(monkeypatch):
    def full(pid):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", full)
    with pytest.raises(OSError, match="Too many open files"):
        removal._end_process(os.getpid())


@pytest.mark.parametrize(("status", "asked"), [(state.CREATED, 2), (state.RUNNING, 1)])
def test_a_container_that_was_made_since_the_shim_did_not_know_it_is_asked_for_again(
    tmp_path, monkeypatch, status, asked
):
    directory = state.create(str(tmp_path), "one")
    facts = {"bundle": "/b", "rootfs": "/b/r", "created": "2026-01-01T00:00:00Z", "owner": "root"}
    state.write_state(directory, id="one", status=status, pid=1, annotations={}, **facts)
    state.write_owner(directory, os.getpid())
    answers = [None, NotFoundError("container one does not exist")]
    calls = []

    def ask(*words):
        calls.append(words)
        if answer := answers.pop():
            raise answer

    monkeypatch.setattr(container, "ask", ask)
    if asked == 1:
        with pytest.raises(NotFoundError):
            container.start(directory)
    else:
        container.start(directory)
    assert len(calls) == asked
