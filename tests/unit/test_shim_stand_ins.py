"""What stands for a task on the host: where it is, what it shows, and with whom it ends."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.shim import stand_ins
from bufferzone.shim.stand_ins import StandIns

WAIT_S = 60.0


@pytest.fixture
def makers() -> Iterator[StandIns]:
    made = StandIns()
    made.start()
    yield made
    made.close()


def network_of(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def await_gone(pid: int) -> None:
    """Wait until nobody has that pid: the keeper leaves no zombies."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert stand_ins.pidfd.await_end(fd, WAIT_S)
    finally:
        os.close(fd)


def nobody() -> None:
    raise AssertionError("nobody else ended it")


def test_it_shows_the_command_line_of_what_it_stands_for(makers: StandIns) -> None:
    made = makers.begin(None, ["/bin/sleep", "1000"], nobody)
    shown = Path(f"/proc/{made.pid}/cmdline").read_bytes()
    assert shown.rstrip(b"\0").split(b"\0") == [b"/bin/sleep", b"1000"]
    assert Path(f"/proc/{made.pid}/comm").read_text() == "sleep\n"
    made.end()


def test_a_command_line_of_any_length_is_cut_and_not_refused(makers: StandIns) -> None:
    made = makers.begin(None, ["/bin/sh", "-c", "x" * (1 << 20), "", "\x1b[2Jé"], nobody)
    assert Path(f"/proc/{made.pid}/cmdline").read_bytes().startswith(b"/bin/sh\0-c\0xxx")
    made.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
def test_it_is_in_the_network_namespace_of_its_container(makers: StandIns) -> None:
    own = makers.begin("", ["a"], nobody)
    joined = makers.begin(f"/proc/{own.pid}/ns/net", ["b"], nobody)
    host = makers.begin(None, ["c"], nobody)
    assert network_of(own.pid) not in (network_of("self"), network_of(host.pid))
    assert network_of(joined.pid) == network_of(own.pid)
    assert network_of(host.pid) == network_of("self")
    for made in (own, joined, host):
        made.end()


def test_a_namespace_that_is_not_there_is_an_error_and_the_next_one_is_made(makers: StandIns) -> None:
    with pytest.raises(HostError, match="network namespace /nosuch: No such file or directory"):
        makers.begin("/nosuch", ["a"], nobody)
    makers.begin(None, ["a"], nobody).end()


def test_it_ends_when_told_and_leaves_nothing(makers: StandIns) -> None:
    made = makers.begin(None, ["a"], nobody)
    made.end()
    made.end()
    await_gone(made.pid)


def test_somebody_else_who_ends_it_is_noticed(makers: StandIns) -> None:
    told = threading.Event()
    made = makers.begin(None, ["a"], told.set)
    os.kill(made.pid, signal.SIGTERM)
    assert told.wait(WAIT_S)
    made.end()


def test_all_end_with_the_shim() -> None:
    reader, writer = os.pipe()
    shim = os.fork()
    if shim == 0:
        made = StandIns()
        pids = [made.begin(None, ["a"], nobody).pid for _ in range(2)]
        os.write(writer, json.dumps([*pids, made.pid]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    pids = json.loads(os.read(reader, 4096))
    os.waitpid(shim, 0)
    for pid in pids:
        await_gone(pid)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "spec", [{}, {"process": {"args": 5}}, {"process": None, "linux": {"namespaces": 1}}]
)
def test_a_malformed_bundle_is_left_to_who_can_say_what_is_wrong(spec: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(spec))
    assert stand_ins.of_container(str(tmp_path)) == (None, [])


def test_network_and_command_line_are_those_of_the_bundle(tmp_path: Path) -> None:
    spec = {"process": {"args": ["a", "b"]}, "linux": {"namespaces": [{"type": "network", "path": "/x"}]}}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    assert stand_ins.of_container(str(tmp_path)) == ("/x", ["a", "b"])


def test_in_a_scope_they_outlive_signals_that_are_meant_for_containers() -> None:
    lost = threading.Event()
    made = StandIns()
    made.be_deaf()
    made.start()
    one = made.begin(None, ["sleep"], lost.set)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 3):
        os.kill(one.pid, number)
        os.kill(made.pid, number)
    other = made.begin(None, ["sleep"], lost.set)  # who makes them is there
    assert Path(f"/proc/{one.pid}/comm").read_text() == "sleep\n"
    assert not lost.is_set()
    os.kill(one.pid, signal.SIGKILL)
    assert lost.wait(WAIT_S)
    other.end()
    made.close()
