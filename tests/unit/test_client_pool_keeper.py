"""`client.pool_keeper`: what is asked of a pool's keeper, against one that answers as it is told to."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from contextlib import contextmanager

import pytest

from bufferzone import config, state
from bufferzone.client import pool_keeper, start
from bufferzone.config import Settings
from bufferzone.errors import HostError, NotFoundError


@contextmanager
def a_keeper(root, answer: bytes):
    """Answers one question below `root`; yields the list that the question is put into."""
    directory = root / state.POOL
    directory.mkdir(exist_ok=True)
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / state.POOL_SOCKET))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(1 << 12))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def test_what_waits_comes_as_values(tmp_path):
    with a_keeper(tmp_path, b'{"vms": [{"pid": 7}], "notes": []}') as asked:
        assert pool_keeper.listing(str(tmp_path)) == {"vms": [{"pid": 7}], "notes": []}
    assert asked == [b'{"do":"list"}\n']


@pytest.mark.parametrize("answer", [b"", b"{", b"\xff"])
def test_a_malformed_answer_is_one_line(tmp_path, answer):
    with a_keeper(tmp_path, answer), pytest.raises(HostError, match="sent a malformed answer"):
        pool_keeper.listing(str(tmp_path))


def test_where_no_keeper_is_it_says_so(tmp_path):
    with pytest.raises(NotFoundError, match="no pool is kept below"):
        pool_keeper.listing(str(tmp_path))


def test_end_asks_the_keeper_to_stop(tmp_path):
    with a_keeper(tmp_path, b"") as asked:
        pool_keeper.end(str(tmp_path))
    assert asked == [b'{"do":"stop"}\n']


def left_by_a_killed_keeper(root):
    directory = root / state.POOL
    (directory / "17").mkdir(parents=True)
    (directory / "17" / "console.log").touch()
    (directory / "keeper.log").touch()
    (directory / "lock").touch()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(directory / state.POOL_SOCKET))
    return directory


def test_end_clears_what_a_killed_keeper_left(tmp_path):
    directory = left_by_a_killed_keeper(tmp_path)
    pool_keeper.end(str(tmp_path))
    assert sorted(os.listdir(directory)) == ["keeper.log", "lock"]


def test_end_leaves_alone_what_a_keeper_is_just_beginning_with(tmp_path):
    directory = left_by_a_killed_keeper(tmp_path)
    before = sorted(os.listdir(directory))
    with open(directory / "lock", "rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pool_keeper.end(str(tmp_path))
    assert sorted(os.listdir(directory)) == before


@pytest.fixture
def pooled(monkeypatch):
    """A root whose settings have a pool."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(config, "load", lambda: Settings(pool_size=1))


@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize(
    ("line", "words"), [(b"ready\n", ""), (b"no template\n", "no template"), (b"", "the pool's keeper died")]
)
def test_begin_waits_for_the_keepers_one_line(tmp_path, monkeypatch, line, words):
    asked = []

    def start_keeper(root: str, shape: str, program: str, ready: int) -> int:
        asked.append((root, "memory_mib" in shape))
        os.write(ready, line)
        return 1

    monkeypatch.setattr(start, "start_keeper", start_keeper)
    if words:
        with pytest.raises(HostError, match=words):
            pool_keeper.begin(str(tmp_path))
    else:
        pool_keeper.begin(str(tmp_path))
    assert asked == [(str(tmp_path), True)]


def test_without_a_pool_in_the_settings_none_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(config, "load", Settings)
    with pytest.raises(HostError, match="the pool is disabled"):
        pool_keeper.begin(str(tmp_path))
    assert not os.listdir(tmp_path)
