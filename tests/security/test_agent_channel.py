"""A hostile agent on the channel: what it says about errors, floods, and not reading at all."""

import socket
import threading
import time

import pytest

from bufferzone.errors import BufferzoneError, ExecError, GuestError, VmmError
from bufferzone.vm.agent_client import AgentClient
from bufferzone.wire import agent, ttrpc
from bufferzone.wire.proto import Any_, Empty


@pytest.fixture
def pair():
    host, guest = socket.socketpair()
    guest.settimeout(120)
    client = AgentClient(host)
    client.start()
    yield client, guest
    client.close()
    guest.close()


def refused_with(pair, status):
    """What the host makes of `status` as the answer to a Wait."""
    client, guest = pair
    reply = ttrpc.encode_frame(1, ttrpc.RESPONSE, ttrpc.Response(status=status).encode())

    def answer():
        guest.recv(65536)
        guest.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(BufferzoneError) as caught:
        client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse)
    thread.join(20)
    return caught.value


def status(cls="GuestError", code="guest", message="no", hint=""):
    detail = ttrpc.ErrorDetail(cls=cls, code=code, hint=hint)
    value = Any_(type_url=ttrpc.ERROR_TYPE_URL, value=detail.encode())
    return ttrpc.Status(code=2, message=message, details=[value])


@pytest.mark.parametrize("cls", ["VmmError", "HostError", "BugError", "NotFoundError", "Exception"])
def test_a_guest_cannot_blame_the_host_or_the_vmm(pair, cls):
    assert type(refused_with(pair, status(cls))) is GuestError


def test_a_guest_may_say_that_the_program_is_missing(pair):
    assert type(refused_with(pair, status("ExecError", "exec-not-found"))) is ExecError


def test_text_of_the_guest_is_printable_and_bounded(pair):
    raw = b"\x1b]0;x\x07\xff\x9b".decode("utf-8", "surrogateescape") + "y" * (1 << 20)
    error = refused_with(pair, status(message=raw, hint=raw, code="\x1b"))
    assert error.line().isprintable()
    assert len(error.line()) < 6000
    error.line().encode()
    assert error.code == "guest"


def test_an_error_whose_detail_is_garbage_is_an_error_of_the_guest(pair):
    garbage = Any_(type_url=ttrpc.ERROR_TYPE_URL, value=b"\xff")
    assert type(refused_with(pair, ttrpc.Status(code=2, details=[garbage]))) is GuestError


@pytest.mark.parametrize("stream", [0, 2, 3, 4711, (1 << 32) - 1])
def test_an_answer_to_a_request_that_was_never_sent_ends_the_channel(pair, stream):
    client, guest = pair
    lost = threading.Event()
    client.when_broken(lambda error: (client.lose(error), lost.set()))
    guest.sendall(ttrpc.encode_frame(stream, ttrpc.RESPONSE, b""))
    assert lost.wait(20)
    with pytest.raises(VmmError, match="answer to no request"):
        client.call("Start", agent.ProcessRef(id="a"), Empty)


def test_a_guest_that_reads_nothing_holds_no_verb(pair):
    client, _ = pair
    big = agent.WriteRequest(id="a", data=b"x" * agent.CHUNK * 8)

    def write():
        with pytest.raises(VmmError):
            client.call("Write", big, Empty)

    writer = threading.Thread(target=write)
    writer.start()
    began = time.monotonic()
    with pytest.raises(VmmError, match="did not answer Start"):
        client.call("Start", agent.ProcessRef(id="a"), Empty, timeout_s=0.2)
    assert time.monotonic() - began < 10
    client.close()
    writer.join(20)
    assert not writer.is_alive()


def test_a_frame_that_was_taken_in_part_is_finished_first(pair):
    client, guest = pair
    big = agent.WriteRequest(id="a", data=b"x" * agent.CHUNK * 8)
    for _ in range(2):
        with pytest.raises(VmmError, match="did not answer"):
            client.call("Write", big, Empty, timeout_s=0.2)
    frames, got, done = ttrpc.FrameReader(), [], threading.Event()

    def read():
        while len(got) < 2:
            got.extend(frames.feed(guest.recv(1 << 20)))
        done.set()

    threading.Thread(target=read, daemon=True).start()
    with pytest.raises(VmmError):
        client.call("Start", agent.ProcessRef(id="a"), Empty, timeout_s=2)
    assert done.wait(20)
    assert [ttrpc.Request.decode(frame.payload).method for frame in got] == ["Write", "Start"]
