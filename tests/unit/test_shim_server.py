"""The ttrpc server over a real socket: answers, refusals, descriptors, and an answer that does not fit."""

import os
import socket
import threading

import pytest

from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError, StateError
from bufferzone.shim.server import Server
from bufferzone.wire import agent, shim, task, ttrpc
from bufferzone.wire.proto import Empty


@pytest.fixture
def served(tmp_path):
    """(client, seen): State echoes, Pause refuses, Kill reads a descriptor, Info answers with 5 MiB."""
    seen = {"gone": threading.Event()}

    def state(peer, request):
        peer.when_gone(seen["gone"].set)
        return task.StateResponse(id=request.id, pid=peer.pid)

    def pause(peer, request):
        raise StateError("cannot pause")

    def kill(peer, request):
        (fd,) = peer.take_fds()
        with open(fd, "rb") as file:
            seen["bytes"] = file.read()
        return Empty()

    services = {
        task.SERVICE: {
            "State": (task.StateRequest, state),
            "Pause": (task.PauseRequest, pause),
            "Kill": (task.KillRequest, kill),
        },
        shim.SERVICE: {"Processes": (agent.ProcessRef, lambda peer, request: huge())},
    }
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "shim.sock"))
    listener.listen(8)
    server = Server(listener, services, lambda line: None)
    server.start()
    with Client.connect(str(tmp_path / "shim.sock")) as client:
        yield client, seen
    server.stop_accepting()
    server.drain(10)
    listener.close()


def huge():
    return agent.PidsResponse(processes=[agent.ProcessInfo(command="x" * (5 << 20))])


def test_a_call_is_answered_and_the_caller_known_by_its_pid(served):
    client, _ = served
    reply = client.call("State", task.StateRequest(id="c"), timeout_s=120)
    assert (reply.id, reply.pid) == ("c", os.getpid())


def test_a_refusal_keeps_its_class_and_text(served):
    client, _ = served
    with pytest.raises(StateError, match="cannot pause"):
        client.call("Pause", task.PauseRequest(id="c"), timeout_s=120)


def test_a_method_that_is_not_there_is_told_and_the_connection_goes_on(served):
    client, _ = served
    with pytest.raises(BufferzoneError, match="Resume is not implemented"):
        client.call("Resume", task.ResumeRequest(id="c"), timeout_s=120)
    assert client.call("State", task.StateRequest(id="d"), timeout_s=120).id == "d"


def test_a_descriptor_travels_with_its_request(served):
    client, seen = served
    read_end, write_end = os.pipe()
    os.write(write_end, b"through")
    os.close(write_end)
    client.call("Kill", task.KillRequest(id="c"), fds=[read_end], timeout_s=120)
    os.close(read_end)
    assert seen["bytes"] == b"through"


def test_an_answer_that_does_not_fit_into_a_frame_is_an_error_and_not_silence(served):
    client, _ = served
    with pytest.raises(BufferzoneError, match="the answer is too large"):
        client.call("Processes", agent.ProcessRef(id="c"), service=shim.SERVICE, timeout_s=120)


def test_the_end_of_a_connection_is_noticed(served):
    client, seen = served
    client.call("State", task.StateRequest(id="c"), timeout_s=120)
    client.close()
    assert seen["gone"].wait(20)


@pytest.mark.parametrize(("key", "details"), [("containerd-namespace-ttrpc", 0), ("other", 1)])
def test_containerd_gets_no_details_of_an_error_which_it_would_take_for_another_one(
    tmp_path, served, key, details
):
    pair = ttrpc.KeyValue(key=key, value="k8s.io")
    request = ttrpc.Request(service=task.SERVICE, method="Pause", metadata=[pair])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "shim.sock"))
        sock.sendall(ttrpc.encode_frame(1, ttrpc.REQUEST, request.encode()))
        frames, reader = [], ttrpc.FrameReader()
        while not frames:
            frames = reader.feed(sock.recv(4096))
    status = ttrpc.Response.decode(frames[0].payload).status
    assert (status.code, status.message) == (ttrpc.FAILED_PRECONDITION, "cannot pause")
    assert len(status.details) == details
