"""Signals to a shim: the end, or in a scope word to the containers that it stands for."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from bufferzone import spawn
from bufferzone.errors import StateError
from bufferzone.shim import termination
from bufferzone.shim.table import Table
from bufferzone.wire import task


@pytest.fixture(autouse=True)
def restored():
    before = {number: signal.getsignal(number) for number in spawn.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def process(container_id, stands_in, *, exec_id="", status=task.RUNNING):
    ref = SimpleNamespace(id=container_id, exec_id=exec_id)
    return SimpleNamespace(ref=ref, stands_in=stands_in, status=status)


class Shim:
    def __init__(self, unit, *processes):
        self.cgroup = SimpleNamespace(unit=unit)
        self.ended, self.killed, self.told = False, [], threading.Event()
        self.table = Table()
        for each in processes:
            self.table.reserve(each)

    def end(self):
        self.ended = True
        self.told.set()

    def is_unused(self):
        return self.table.is_empty()

    def kill(self, peer, request):
        self.killed.append((request.id, request.signal))
        if len(self.killed) == 2:
            self.told.set()
        raise StateError("it has just ended")

    def get(self, number):
        termination.be_told(self, self)
        os.kill(os.getpid(), number)
        assert self.told.wait(10)


def test_it_ends_the_sandbox_outside_of_a_scope():
    shim = Shim("", process("c", True))
    shim.get(signal.SIGTERM)
    assert (shim.ended, shim.killed) == (True, [])


def test_in_a_scope_without_containers_it_ends_too():
    shim = Shim("x.scope")
    shim.get(signal.SIGTERM)
    assert shim.ended


@pytest.mark.parametrize("number", [15, 1, 10, signal.SIGRTMIN + 3])
def test_in_a_scope_it_is_passed_to_the_containers_that_no_waiter_stands_for(number):
    shim = Shim(
        "x.scope",
        process("a", True),
        process("b", False),
        process("c", True),
        process("c", True, exec_id="e"),
        process("d", True, status=task.STOPPED),
    )
    shim.get(number)
    assert shim.killed == [("a", number), ("c", number)]
    assert not shim.ended
