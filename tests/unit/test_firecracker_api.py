"""The client of Firecracker's API against servers that answer, refuse, and misbehave."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bufferzone.errors import VmmError
from bufferzone.vmm.firecracker import figures
from bufferzone.vmm.firecracker.api import BODY_LIMIT, HEAD_LIMIT, Api

NEVER = os.eventfd(0)
NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"


def with_body(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def answering(directory: Path, *answers: bytes) -> Iterator[tuple[Api, list[bytes]]]:
    """A connected client and what its server was asked; the server closes after its last answer."""
    path, seen = str(directory / "api"), list[bytes]()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    seen.append(connection.recv(1 << 16))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        api = Api(path)
        try:
            api.connect(10, NEVER)
            yield api, seen
        finally:
            api.close()
            thread.join()


def test_requests_go_out_one_by_one_and_answers_are_read_whole(tmp_path: Path) -> None:
    with answering(tmp_path, with_body(200, b'{"a": 1}'), NO_CONTENT) as (api, seen):
        assert api.call("GET", "/version") == {"a": 1}
        assert api.call("PUT", "/entropy", {}) is None
    assert seen[0].startswith(b"GET /version HTTP/1.1\r\n")
    assert seen[1].endswith(b"Content-Length: 2\r\n\r\n{}")


def test_a_refusal_says_what_firecracker_said_on_one_printable_line(tmp_path: Path) -> None:
    body = b'{"fault_message": "Kernel Loader:\\n\\u001b[31mno ELF"}'
    with answering(tmp_path, with_body(400, body)) as (api, _), pytest.raises(VmmError) as caught:
        api.call("PUT", "/actions", {})
    assert caught.value.code == "vmm-refused"
    assert str(caught.value.message) == "Firecracker refused PUT /actions: Kernel Loader: ?[31mno ELF"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 two \r\n\r\n", "not HTTP"),
        (with_body(200, b"{"), "not JSON"),
        (with_body(200, b"[" * 20_000), "not JSON"),
        (f"HTTP/1.1 200 \r\nContent-Length: {BODY_LIMIT + 1}\r\n\r\n".encode(), "too long"),
        (b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", "too long"),
        (b"HTTP/1.1 200 \r\n" + b"x: y\r\n" * HEAD_LIMIT, "too long"),
        (b"HTTP/1.1 200 \r\nContent-Le", "closed"),
    ],
)
def test_bytes_that_are_no_answer_end_the_connection(tmp_path: Path, answer: bytes, reason: str) -> None:
    with answering(tmp_path, answer) as (api, _):
        for _ in range(2):
            with pytest.raises(VmmError, match=reason) as caught:
                api.call("GET", "/")
            assert caught.value.code == "api-lost"


def test_an_answer_that_does_not_come_is_not_awaited_for_ever(tmp_path: Path) -> None:
    with answering(tmp_path, b"") as (api, _), pytest.raises(VmmError, match="closed"):
        api.call("GET", "/", timeout_s=10)
    path = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        api = Api(path)
        api.connect(10, NEVER)
        with pytest.raises(VmmError, match="did not answer in time") as caught:
            api.call("GET", "/", timeout_s=0.05)
        assert caught.value.code == "api-timeout"
        api.close()


def test_one_that_has_ended_before_it_listened_is_not_waited_for(tmp_path: Path) -> None:
    ended = os.eventfd(1)
    api = Api(str(tmp_path / "nobody"))
    with pytest.raises(VmmError, match="it has ended"):
        api.connect(60, ended)
    os.close(ended)


def test_a_status_of_its_own_stands_for_the_signal_that_it_caught() -> None:
    assert [figures.signal_of(status) for status in (None, 0, 1, -9, 148, 150)] == [None, 0, 1, -9, -31, -11]


def test_metrics_tell_a_reset_and_hostile_ones_tell_nothing() -> None:
    assert figures.was_reset(figures.last(["{}", '{"i8042": {"reset_count": 1}}']))
    for line in ("", "{", "[1]", '{"i8042": 3}', '{"i8042": {"reset_count": 0}}', "[" * 20_000):
        assert not figures.was_reset(figures.last([line]))
    assert figures.last([]) == {}
