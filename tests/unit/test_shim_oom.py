"""Out-of-memory kills of the guest: told once, before the exit, and to a conmon's callers as by conmon."""

import threading
import types
from pathlib import Path

import pytest

from bufferzone.errors import NotFoundError, VmmError
from bufferzone.shim.oom import OomReporter, leave_file
from bufferzone.shim.process import Process
from bufferzone.shim.stdio import Stdio
from bufferzone.shim.table import Table
from bufferzone.wire import agent, shim, task


class Events:
    def __init__(self):
        self.told = []

    def publish(self, event):
        self.told.append(event)


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def process(tmp_path):
    found = Process(
        agent.ProcessRef(id="c"),
        bundle=str(tmp_path),
        terminal=False,
        uris=("", "", ""),
        stdio=Stdio(),
        pid=0,
    )
    found.status = task.RUNNING
    return found


@pytest.fixture
def teller(process, events):
    table = Table()
    table.reserve(process)
    return OomReporter(table, events)


def guest(*answers):
    """An agent that reports these ids, then ends."""
    left = list(answers)

    def call(method, request, reply):
        if not left:
            raise VmmError("ended")
        return reply(ids=left.pop(0))

    return types.SimpleNamespace(call=call)


def conmon(base: Path, pid: int, *words: str, comm: str = "conmon") -> str:
    """A /proc in which `pid` is the child of a conmon with these arguments."""
    for number, parent, name in ((pid, 77, "bufferzone"), (77, 1, comm)):
        place = base / "proc" / str(number)
        place.mkdir(parents=True)
        (place / "stat").write_text(f"{number} (a ) b) S {parent} 1 1")
        (place / "comm").write_text(f"{name}\n")
        (place / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in ("conmon", *words)))
    return str(base / "proc")


@pytest.mark.parametrize("flag", [("--persist-dir", "{}"), ("-0", "{}"), ("--persist-dir={}",)])
def test_the_file_lies_where_conmon_would_leave_it(tmp_path, flag):
    for name in ("bundle", "kept"):
        (tmp_path / name).mkdir()
    proc = conmon(tmp_path, 5, "-b", "/x", *(word.format(tmp_path / "kept") for word in flag))
    leave_file(5, str(tmp_path / "bundle"), proc)
    assert [(tmp_path / name / "oom").exists() for name in ("bundle", "kept")] == [True, True]


def test_without_a_conmon_the_bundle_is_left_alone(tmp_path):
    assert leave_file(5, str(tmp_path), conmon(tmp_path, 5, comm="bash")) == []
    assert leave_file(6, str(tmp_path), str(tmp_path / "proc")) == []
    assert not (tmp_path / "oom").exists()


def test_the_file_is_never_written_through_a_link(tmp_path):
    (tmp_path / "oom").symlink_to(tmp_path / "elsewhere")
    assert leave_file(5, str(tmp_path), conmon(tmp_path, 5)) == []
    assert not (tmp_path / "elsewhere").exists()


def test_a_kill_is_an_event_and_invented_names_are_none(teller, events):
    teller.watch(guest(["c", "nobody", "c"]))
    assert [event.container_id for event in events.told] == ["c"]


def test_a_kill_that_came_with_the_end_is_told_before_the_exit(teller, events, process):
    process.oom_kills, process.status = 1, task.STOPPED
    teller.ended(process)
    teller.watch(guest(["c"]))  # the same one, late
    assert len(events.told) == 1


def test_a_kill_that_was_told_is_not_told_again_at_the_end(teller, events, process):
    teller.watch(guest(["c"]))
    process.oom_kills, process.status = 1, task.STOPPED
    teller.ended(process)
    assert len(events.told) == 1


def test_an_end_without_a_kill_is_no_event(teller, events, process):
    process.status = task.STOPPED
    teller.ended(process)
    assert events.told == []


def test_whoever_waits_hears_of_the_kill_and_of_the_end(teller, process):
    answers = []

    def wait():
        answers.append(teller.wait(None, shim.OomRequest(id="c", seen=0, timeout_ms=10_000)))

    for then in (lambda: teller.watch(guest(["c"])), lambda: teller.ended(process)):
        waiting = threading.Thread(target=wait)
        waiting.start()
        then()
        waiting.join(10)
        teller._counts.clear()
        process.status = task.STOPPED
    assert [(a.count, a.ended) for a in answers] == [(1, False), (0, True)]


def test_waiting_without_news_ends_in_time_and_needs_a_container(teller):
    answer = teller.wait(None, shim.OomRequest(id="c", seen=0, timeout_ms=1))
    assert (answer.count, answer.ended) == (0, False)
    with pytest.raises(NotFoundError):
        teller.wait(None, shim.OomRequest(id="x"))
