"""What `bz stats` makes of counters."""

from __future__ import annotations

import time

from bufferzone.cli.bz import stats
from bufferzone.library.values import Stats


def used(cpu_s):
    return Stats(cpu_s=cpu_s, memory_mib=None, peak_memory_mib=None, processes=None)


def test_the_percentage_is_of_one_cpu_since_the_last_look(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seen = stats._Used()
    seen.note([("a", used(10.0)), ("b", used(None))])
    now = 102.0
    assert seen.fields("a", used(13.0))["cpu_percent"] == 150.0
    assert seen.fields("a", used(10.0))["cpu_percent"] == 0.0
    assert seen.fields("b", used(1.0))["cpu_percent"] is None
    assert seen.fields("new", used(1.0))["cpu_percent"] is None
    assert stats._rows([("a", used(13.0))], seen)[1] == ["a", "150.0", "13.0", "-", "-", "-"]
