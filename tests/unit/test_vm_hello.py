"""The first calls to a guest that runs, against an agent whose answers take as long as we say."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from bufferzone.guest import clock
from bufferzone.vm import hello
from bufferzone.wire import agent

MS = 1_000_000
#: host's wall clock minus guest's monotonic clock
APART = 1_700_000_000_000 * MS


class Guest:
    """Its answers take `ways_ms` to come back, one after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ways_ms: int) -> None:
        self._ways = [way * MS for way in ways_ms]
        self._monotonic = 5_000 * MS
        self.set: list[int] = []
        monkeypatch.setattr(time, "time_ns", lambda: APART + self._monotonic)

    def call(self, method, request, reply, timeout_s=0):
        if method == "SetClock":
            self.set.append((request.offset_ns - APART) // MS)
        answer = reply(monotonic_ns=self._monotonic)
        self._monotonic += self._ways.pop(0)
        return answer

    def send(self, *requests, timeout_s=0):
        ((method, request),) = requests
        answer = self.call(method, request, agent.HelloResponse)
        return [SimpleNamespace(result=lambda reply: answer, arrived_ns=time.time_ns())]


@pytest.mark.parametrize(
    ("ways", "set_ms"),
    [
        ((3, 3), [3]),
        ((60, 2, 2), [60, 2]),
        ((60, 40, 3, 3), [60, 40, 3]),
        ((8, 300), [8]),
        ((60, 59, 58, 3, 3), [60, 59, 58, 3]),
        ((90, 80, 70, 60, 50, 40, 35, 30, 25), [90, 80, 70, 60, 50, 40, 35, 30]),
    ],
    ids=["quick", "slow once", "slow twice", "worse later", "slow alike", "always slow"],
)
def test_a_clock_is_set_by_the_quickest_answer_in_few_rounds(monkeypatch, ways, set_ms):
    guest = Guest(monkeypatch, *ways)
    hello.say_hello(guest, "name", 1.0)
    assert guest.set == set_ms


def test_a_guest_that_lies_about_its_clock_gets_few_rounds(monkeypatch):
    class Liar(Guest):
        def call(self, method, request, reply, timeout_s=0):
            answer = super().call(method, request, reply)
            answer.monotonic_ns = (1 << 64) - 1 - 6 * MS * (9 - len(self.set))
            return answer

    guest = Liar(monkeypatch, *[1] * 10)
    assert isinstance(hello.say_hello(guest, "name", 1.0), agent.HelloResponse)
    assert 1 <= len(guest.set) <= 8


def test_a_greeting_that_was_answered_long_ago_sets_the_clock_by_when_the_answer_came(monkeypatch):
    guest = Guest(monkeypatch, 3, 3)
    begun = hello.begin_hello(guest, "name", 1.0)
    guest._monotonic += 500 * MS  # what else there was to do
    hello.be_greeted(guest, begun, 1.0)
    assert guest.set == [3]


def test_a_clock_of_which_nothing_is_known_is_asked_first(monkeypatch):
    guest = Guest(monkeypatch, 3, 3)
    hello.set_clock(guest, 1.0)
    assert guest.set == [-APART // MS, 3]


@pytest.mark.parametrize(("late_ms", "rounds"), [((0,), 1), ((70, 40, 1), 3), ((70,) * 30, 20)])
def test_a_guest_that_is_held_up_while_it_sets_its_clock_sets_it_again(monkeypatch, late_ms, rounds):
    late, now, found = list(late_ms), [5 * MS], []

    def settime(clock: int, value: int) -> None:
        now[0] += late.pop(0) * MS
        found.append(now[0] + APART - value)

    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(time, "clock_settime_ns", settime)
    clock.set_wall_clock(APART)
    assert len(found) == rounds
    assert found[-1] <= 1 * MS or rounds == 20
