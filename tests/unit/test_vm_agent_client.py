"""The agent channel on the host: concurrent calls, hostile answers, a channel that breaks."""

import socket
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from bufferzone.errors import ExecError, GuestError, VmmError
from bufferzone.vm.agent_client import AgentClient, if_alive
from bufferzone.wire import agent, ttrpc
from bufferzone.wire.proto import Empty


class Guest:
    """A scripted agent: receives requests, answers with what a test says."""

    def __init__(self, sock):
        self.sock = sock
        self.frames = ttrpc.FrameReader()
        self.waiting = []

    def request(self):
        while not self.waiting:
            data = self.sock.recv(65536)
            assert data
            self.waiting += self.frames.feed(data)
        frame = self.waiting.pop(0)
        return frame.stream, ttrpc.Request.decode(frame.payload)

    def reply(self, stream, message=None, error=None):
        status = ttrpc.status_of(error) if error else None
        response = ttrpc.Response(status=status, payload=message.encode() if message else b"")
        self.sock.sendall(ttrpc.encode_frame(stream, ttrpc.RESPONSE, response.encode()))


@pytest.fixture
def pair():
    host, other = socket.socketpair()
    other.settimeout(120)
    client = AgentClient(host)
    client.start()
    yield client, Guest(other)
    client.close()
    other.close()


def in_thread(function):
    result = {}

    def run():
        try:
            result["value"] = function()
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    result["join"] = lambda: thread.join(20)
    return result


def test_requests_that_are_sent_together_arrive_in_order_and_are_answered_each(pair):
    client, guest = pair
    ref = agent.ProcessRef(id="a")
    before = time.time_ns()
    one, two, three = client.send(("Start", ref), ("CloseStdin", ref), ("Wait", ref))
    asked = [guest.request() for _ in range(3)]
    assert [request.method for _, request in asked] == ["Start", "CloseStdin", "Wait"]
    guest.reply(asked[2][0], agent.WaitResponse(exit_status=3))
    guest.reply(asked[0][0], error=GuestError("no"))
    assert three.result(agent.WaitResponse).exit_status == 3
    assert before < three.arrived_ns <= time.time_ns()
    with pytest.raises(GuestError, match="no"):
        one.result(Empty)
    client.forget(two.stream)
    guest.reply(asked[1][0])  # nobody waits for it any more, and nobody minds
    later = in_thread(lambda: client.call("Start", ref, Empty))
    guest.reply(guest.request()[0], Empty())
    later["join"]()
    assert "value" in later


def test_answers_may_come_in_another_order_than_the_questions(pair):
    client, guest = pair
    first = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse))
    one, _ = guest.request()
    second = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="b"), agent.WaitResponse))
    two, _ = guest.request()
    guest.reply(two, agent.WaitResponse(exit_status=2))
    second["join"]()
    assert second["value"].exit_status == 2
    assert "value" not in first
    guest.reply(one, agent.WaitResponse(exit_status=1))
    first["join"]()
    assert first["value"].exit_status == 1


def test_an_error_keeps_its_class_code_and_text(pair):
    client, guest = pair
    call = in_thread(lambda: client.call("Create", agent.CreateRequest(id="a"), agent.PidResponse))
    stream, _ = guest.request()
    guest.reply(stream, error=ExecError('exec: "x": executable file not found in $PATH'))
    call["join"]()
    assert isinstance(call["error"], ExecError)
    assert "executable file not found" in call["error"].message


def test_bytes_that_are_no_frames_end_the_channel_for_every_call(pair):
    client, guest = pair
    call = in_thread(lambda: client.call("Start", agent.ProcessRef(id="a"), Empty))
    guest.request()
    guest.sock.sendall(b"\xff" * 64)
    call["join"]()
    assert isinstance(call["error"], VmmError)
    with pytest.raises(VmmError, match="not ttrpc"):
        client.call("Start", agent.ProcessRef(id="a"), Empty)


def test_a_malformed_answer_is_the_guests_fault_and_only_of_that_call(pair):
    client, guest = pair
    call = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse))
    stream, _ = guest.request()
    response = ttrpc.Response(payload=b"\x08")
    guest.sock.sendall(ttrpc.encode_frame(stream, ttrpc.RESPONSE, response.encode()))
    call["join"]()
    assert isinstance(call["error"], GuestError)
    again = in_thread(lambda: client.call("Start", agent.ProcessRef(id="a"), Empty))
    stream, _ = guest.request()
    guest.reply(stream)
    again["join"]()
    assert "value" in again


def test_an_answer_that_comes_too_late_is_ignored(pair):
    client, guest = pair
    with pytest.raises(VmmError, match="did not answer"):
        client.call("Start", agent.ProcessRef(id="a"), Empty, timeout_s=0.01)
    late, _ = guest.request()
    call = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse))
    stream, _ = guest.request()
    guest.reply(late, agent.WaitResponse(exit_status=3))
    guest.reply(stream, agent.WaitResponse(exit_status=4))
    call["join"]()
    assert call["value"].exit_status == 4


def test_a_request_frame_from_the_guest_ends_the_channel(pair):
    client, guest = pair
    call = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse))
    stream, _ = guest.request()
    guest.sock.sendall(ttrpc.encode_frame(stream, ttrpc.REQUEST, b""))
    call["join"]()
    assert isinstance(call["error"], VmmError)


def test_the_first_reason_for_the_loss_is_the_one_everybody_gets(pair):
    client, _ = pair
    client.lose(VmmError("the guest kernel panicked", code="guest-panic"))
    client.lose(VmmError("something later"))
    with pytest.raises(VmmError, match="panicked"):
        client.call("Start", agent.ProcessRef(id="a"), Empty)


def test_a_call_with_a_limit_gives_up_and_the_late_answer_hurts_nobody(pair):
    client, guest = pair
    with pytest.raises(VmmError, match="did not answer Wait within"):
        client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse, timeout_s=0.01)
    stream, _ = guest.request()
    guest.reply(stream, agent.WaitResponse(exit_status=1))
    call = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="b"), agent.WaitResponse))
    stream, _ = guest.request()
    guest.reply(stream, agent.WaitResponse(exit_status=2))
    call["join"]()
    assert call["value"].exit_status == 2


def test_a_guest_that_reads_costs_no_call_but_the_sending(pair, monkeypatch):
    client, guest = pair
    monkeypatch.setattr(client, "_poll", lambda events: pytest.fail("asked whether it may send"))
    call = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse))
    stream, _ = guest.request()
    guest.reply(stream, agent.WaitResponse(exit_status=4))
    call["join"]()
    assert call["value"].exit_status == 4


def test_before_the_reader_runs_a_call_reads_for_itself_and_the_reader_goes_on_where_it_stopped():
    host, other = socket.socketpair()
    other.settimeout(120)
    client, guest = AgentClient(host), Guest(other)
    try:
        other.sendall(ttrpc.encode_frame(1, ttrpc.RESPONSE, ttrpc.Response().encode())[:7])
        with pytest.raises(VmmError, match="did not answer Hello within"):
            client.call("Hello", Empty(), agent.HelloResponse, timeout_s=0.05)
        rest = ttrpc.encode_frame(1, ttrpc.RESPONSE, ttrpc.Response().encode())[7:]
        answer = ttrpc.Response(payload=agent.HelloResponse(kernel="6.1").encode())
        other.sendall(rest + ttrpc.encode_frame(3, ttrpc.RESPONSE, answer.encode()) + b"\0\0")
        assert client.call("Hello", Empty(), agent.HelloResponse).kernel == "6.1"
        client.start()
        call = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse))
        for expected in (1, 3):
            assert guest.request()[0] == expected
        stream, _ = guest.request()
        reply = ttrpc.Response(payload=agent.WaitResponse(exit_status=7).encode())
        other.sendall(ttrpc.encode_frame(stream, ttrpc.RESPONSE, reply.encode())[2:])
        call["join"]()
        assert call["value"].exit_status == 7
    finally:
        client.close()
        other.close()


def test_a_channel_that_ends_before_the_reader_runs_fails_the_call_at_once():
    host, other = socket.socketpair()
    client = AgentClient(host)
    other.close()
    with pytest.raises(VmmError) as caught:
        client.call("Hello", Empty(), agent.HelloResponse, timeout_s=120)
    assert caught.value.code == "agent-lost"
    client.close()


@pytest.mark.parametrize("read", [False, True])
def test_a_call_while_another_thread_closes_the_socket_fails_as_any_other(read):
    host, other = socket.socketpair()
    client = AgentClient(host)
    begun = client.send(("Hello", Empty()), timeout_s=120)[0]
    host.close()
    waiting = begun if read else SimpleNamespace(result=partial(client.call, "Hello", Empty()))
    with pytest.raises(VmmError) as caught:
        waiting.result(agent.HelloResponse)
    assert caught.value.code == "agent-lost"
    other.close()


def test_what_is_put_back_need_not_be_in_a_vm_that_has_ended(pair):
    client, guest = pair
    guest.sock.close()
    with if_alive():
        client.call("Resume", agent.ProcessRef(id="a"), Empty)
        pytest.fail("it answered")
    with pytest.raises(GuestError, match="not mine"), if_alive():
        raise GuestError("not mine")


def test_a_guest_that_does_not_put_it_back_in_time_is_told_of(pair):
    client, _ = pair
    with pytest.raises(VmmError) as caught, if_alive():
        client.call("Resume", agent.ProcessRef(id="a"), Empty, timeout_s=0.01)
    assert caught.value.code == "agent-timeout"


def test_what_is_asked_before_the_guest_has_called_waits_for_its_call():
    host, other = socket.socketpair()
    other.settimeout(120)
    client, guest = AgentClient(None), Guest(other)
    client.start()
    asked = in_thread(lambda: client.call("WaitOom", Empty(), agent.OomEvents))
    client.attach(host)
    stream, request = guest.request()
    assert request.method == "WaitOom"
    guest.reply(stream, agent.OomEvents(ids=["a"]))
    asked["join"]()
    assert asked["value"].ids == ["a"]
    client.close()
    other.close()


def test_what_waits_for_a_guest_that_never_calls_ends_with_the_reason():
    client = AgentClient(None)
    client.start()
    reason = VmmError("the VMM ended before the agent called", code="agent-lost")
    broken = []
    client.when_broken(broken.append)
    asked = in_thread(lambda: client.call("WaitOom", Empty(), agent.OomEvents))
    client.lose(reason)
    asked["join"]()
    assert asked["error"] is reason
    assert broken == []
    with pytest.raises(VmmError, match="did not answer Hello"):
        AgentClient(None).call("Hello", Empty(), Empty, timeout_s=0.01)


def test_while_it_is_held_another_connection_takes_over_what_was_asked(pair):
    client, guest = pair
    broken = []
    client.when_broken(broken.append)
    waited = in_thread(lambda: client.call("Wait", agent.ProcessRef(id="a"), agent.WaitResponse))
    stream, _ = guest.request()
    host, other = socket.socketpair()
    other.settimeout(120)
    replaced = Guest(other)

    def hold():
        with client.held():
            client.attach(host)

    held = in_thread(hold)
    guest.reply(guest.request()[0], Empty())  # Hold
    release, request = replaced.request()
    assert request.method == "Release"
    replaced.reply(release, Empty())
    held["join"]()
    assert "error" not in held
    replaced.reply(stream, agent.WaitResponse(exit_status=7))
    waited["join"]()
    assert waited["value"].exit_status == 7
    assert broken == []
    other.close()


def test_a_connection_that_ends_while_it_is_held_is_told_when_nothing_took_its_place(pair):
    client, guest = pair
    broken = []
    client.when_broken(lambda reason: (broken.append(reason.message), client.lose(reason)))

    entered = threading.Event()

    def hold():
        with client.held():
            entered.set()
            client._thread.join()
            assert broken == []

    held = in_thread(hold)
    guest.reply(guest.request()[0], Empty())
    assert entered.wait(120)
    guest.sock.close()
    held["join"]()
    assert "error" not in held
    assert broken == ["the agent channel was closed"]


def test_what_the_guest_is_told_it_hears_before_the_next_request_and_its_answer_is_dropped(pair):
    client, guest = pair
    client.tell("Delete", agent.ProcessRef(id="c", exec_id="e"))
    asked = in_thread(partial(client.call, "Pause", agent.ProcessRef(id="c"), Empty))
    told, request = guest.request()
    assert request.method == "Delete"
    stream, request = guest.request()
    assert request.method == "Pause"
    guest.reply(told, error=GuestError("it is not there"))
    guest.reply(stream, Empty())
    asked["join"]()
    assert asked["value"] == Empty()
    assert client._calls == {}
