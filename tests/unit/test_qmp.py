"""The QMP client against a peer that is scripted by the test, friendly and not."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bufferzone.errors import VmmError
from bufferzone.vmm.qemu.qmp import EVENT_LIMIT, LINE_LIMIT, Qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}


@pytest.fixture
def ends() -> Iterator[tuple[Qmp, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(120)
    client = Qmp(ours)
    with theirs:
        yield client, theirs
        client.close()


def send(peer: socket.socket, *messages: Any) -> None:
    peer.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))


def answer(peer: socket.socket, *replies: Any) -> threading.Thread:
    """Answer one command after another; a reply gets the id of the command it is for."""

    def run() -> None:
        for reply in replies:
            command = json.loads(peer.recv(65536))
            send(peer, {**reply, "id": command["id"]})

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_greeting_leaves_negotiation_and_tells_the_version(ends: tuple[Qmp, socket.socket]) -> None:
    client, peer = ends
    send(peer, GREETING)
    thread = answer(peer, {"return": {}})
    assert client.greet(5) == "7.2.22"
    thread.join()


def test_events_on_the_way_are_kept_and_late_replies_dropped(ends: tuple[Qmp, socket.socket]) -> None:
    client, peer = ends
    with pytest.raises(VmmError) as caught:
        client.execute("stop", timeout_s=0.01)
    assert caught.value.code == "qmp-timeout"
    peer.recv(65536)
    send(peer, {"return": "late", "id": 1}, {"event": "GUEST_PANICKED", "data": {}})
    thread = answer(peer, {"return": {"status": "running"}})
    assert client.status() == "running"
    assert client.panic()
    thread.join()


def test_a_refusal_is_quoted_without_control_characters(ends: tuple[Qmp, socket.socket]) -> None:
    client, peer = ends
    thread = answer(peer, {"error": {"class": "GenericError", "desc": "no \x1b[31mway"}})
    with pytest.raises(VmmError, match=r"QEMU refused device_add: no \?\[31mway") as caught:
        client.execute("device_add", {"driver": "x"}, timeout_s=60)
    assert caught.value.code == "qmp-refused"
    thread.join()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"[]\n", "not an object"),
        (b"\xff\n", "not JSON"),
        (b"", "closed"),
    ],
)
def test_bytes_that_are_no_qmp_end_the_connection_for_good(
    ends: tuple[Qmp, socket.socket], raw: bytes, reason: str
) -> None:
    client, peer = ends
    peer.sendall(raw)
    peer.shutdown(socket.SHUT_WR)
    for _ in range(2):
        with pytest.raises(VmmError, match=reason) as caught:
            client.execute("query-status", timeout_s=60)
        assert caught.value.code == "qmp-lost"


def test_a_line_without_end_is_cut_off(ends: tuple[Qmp, socket.socket]) -> None:
    client, peer = ends

    def flood() -> None:
        try:
            while True:
                peer.sendall(b"x" * LINE_LIMIT)
        except OSError:
            pass

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(VmmError, match="too long"):
        client.execute("query-status", timeout_s=60)
    thread.join()


def test_a_flood_of_events_is_bounded(ends: tuple[Qmp, socket.socket]) -> None:
    client, peer = ends
    for number in range(2 * EVENT_LIMIT):
        send(peer, {"event": "X", "data": number})
        client.pump()
    assert len(client.events) == EVENT_LIMIT
    assert client.events[-1]["data"] == 2 * EVENT_LIMIT - 1


def test_a_descriptor_arrives_with_getfd(ends: tuple[Qmp, socket.socket]) -> None:
    client, peer = ends
    received: list[int] = []

    def run() -> None:
        data, fds, _, _ = socket.recv_fds(peer, 65536, 4)
        received.extend(fds)
        send(peer, {"return": {}, "id": json.loads(data)["id"]})

    thread = threading.Thread(target=run)
    thread.start()
    client.send_descriptor("tap0", peer.fileno(), timeout_s=60)
    thread.join()
    assert len(received) == 1
    socket.socket(fileno=received[0]).close()
