"""The measurements of the runtimes: rounds, starts side by side, growth. One after another; the machine is
never asked for two things at once unless that is what is measured.
"""

from __future__ import annotations

import json
import os
import time

from bufferzone import state
from bufferzone.bench import figures, memory, programs
from bufferzone.bench.runtimes import COLD_NAMES, VERB_S
from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.wire import shim
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bufferzone.bench.runtimes import Runtime

#: how often exec and state run in each round, after one exec that is told apart: it warms up
REPEATS = 3
_POLL_S = 0.01
#: a sandbox is idle when its start is over: seconds from the last start to the measurement of memory
_SETTLE_S = 2.0


class Column:
    """What was measured of one runtime. Times in ms, memory in MiB."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: dict[str, list[float]] = {}
        self.timelines: list[list[tuple[str, float]]] = []
        self.rates: dict[int, float] = {}
        self.growth: dict[str, Any] = {}
        self.memory: dict[str, float] = {}
        self.roles: dict[str, dict[str, float]] = {}
        self.guest: dict[str, float] = {}
        self.reason = ""

    def add(self, measure: str, value_ms: float | None) -> None:
        """One more sample."""
        if value_ms is not None:
            self.samples.setdefault(measure, []).append(value_ms)

    def p50(self, measure: str) -> float | None:
        """The median of a measure, or None."""
        values = self.samples.get(measure)
        return figures.median(values) if values else None


def one_round(runtime: Runtime, column: Column, id: str) -> None:
    """The life of one container: start, exec, state, delete. Nothing of it is left."""
    started = runtime.start(id)
    try:
        programs.await_all([started], VERB_S, first_byte=True)
        column.add("start", started.first_ms)
        runtime.rest()
        if runtime.is_ours:
            _check_kind(runtime, id)
            column.timelines.append(_timeline(runtime, id))
        column.add("first exec", _exec(runtime, id))
        for _ in range(REPEATS):
            column.add("exec", _exec(runtime, id))
        for _ in range(REPEATS):
            column.add("state", runtime.verb("state", id).total_ms)
        runtime.verb("kill", id, "KILL")
        await_stopped(runtime, id)
        column.add("delete", runtime.verb("delete", id).total_ms)
    except BaseException:
        runtime.remove([id])
        raise
    finally:
        started.close()
        programs.reap()


def _check_kind(runtime: Runtime, id: str) -> None:
    """What was to start warm and started cold is told as what it is."""
    begun = json.loads(runtime.verb("state", id).output)["annotations"].get("bufferzone.start", "unknown")
    if (begun == "cold") != (runtime.name in COLD_NAMES):
        raise HostError(f"{runtime.name}: the sandbox started {begun}{_why(runtime, id)}")


def _why(runtime: Runtime, id: str) -> str:
    """What its shim said of the template; nothing where it said nothing."""
    try:
        with open(os.path.join(runtime.root, id, "shim.log"), encoding="utf-8", errors="replace") as file:
            said = [line.strip() for line in file if "template" in line]
    except OSError:
        return ""
    return f"; its shim said: {said[-1]}" if said else ""


def _exec(runtime: Runtime, id: str) -> float | None:
    done = runtime.verb("exec", id, "/bin/echo", "x")
    if done.output != b"x\n":
        raise HostError(f"{runtime.name}: exec printed {done.output[:40]!r}: {done.errors()}")
    return done.total_ms


def await_stopped(runtime: Runtime, id: str) -> None:
    """Ask `state` until it says stopped."""
    end = time.monotonic() + VERB_S
    while json.loads(runtime.verb("state", id).output)["status"] != "stopped":
        if time.monotonic() > end:
            raise HostError(f"{runtime.name}: a killed container does not stop")
        programs.reap()
        time.sleep(_POLL_S)


def _timeline(runtime: Runtime, id: str) -> list[tuple[str, float]]:
    """The boot timeline of a sandbox of ours; empty when its shim does not tell it."""
    try:
        with Client.connect(state.directory(runtime.root, id)) as client:
            answer = client.call("Info", Empty(), service=shim.SERVICE, timeout_s=VERB_S)
        return [(str(phase), float(end)) for phase, end in json.loads(answer.json)["timeline"]]
    except (BufferzoneError, ValueError, KeyError):
        return []


def side_by_side(runtime: Runtime, column: Column, count: int) -> None:
    """Start `count` sandboxes at once; the rate is per second up to the last one's first byte."""
    ids = [f"p{count}-{index}" for index in range(count)]
    began = time.perf_counter()
    started = []
    try:
        started = [runtime.start(id) for id in ids]
        programs.await_all(started, VERB_S * count, first_byte=True)
        column.rates[count] = round(count / (time.perf_counter() - began), 2)
    finally:
        for program in started:
            program.close()
        remove_all(runtime, ids)


def grow(runtime: Runtime, column: Column, count: int, deadline: float) -> None:
    """Start sandboxes one after another up to `count`, each beside all before it.

    Fewer when `deadline` (time.monotonic) comes first; how many is in `column.growth`.
    """
    before = set(programs.descendants())
    ids: list[str] = []
    started: list[programs.Program] = []
    first = free = None
    starts: list[float] = []
    try:
        while len(ids) < count and time.monotonic() < deadline:
            ids.append(f"g{len(ids)}")
            runtime.rest()
            started.append(runtime.start(ids[-1]))
            programs.await_all(started[-1:], VERB_S, first_byte=True)
            starts.append(started[-1].first_ms or 0.0)
            if first is None:
                first, free = _settled(runtime, before), memory.available()
        if starts:
            column.growth.update(first_and_last(starts))
        if first is not None and free is not None and len(ids) > 1:
            last, added = _settled(runtime, before), len(ids) - 1
            column.memory = memory.one_more(first, last, added)
            column.memory["available"] = round((free - memory.available()) / memory.MIB / added, 1)
            column.roles = memory.by_role(first, last, added)
            for verb in ("exec", "state"):
                words = ("/bin/echo", "x") if verb == "exec" else ()
                times = [runtime.verb(verb, ids[-1], *words).total_ms or 0.0 for _ in range(REPEATS)]
                column.growth[verb] = round(figures.median(times), 1)
    finally:
        for program in started:
            program.close()
        remove_all(runtime, ids)


def first_and_last(starts: Sequence[float]) -> dict[str, Any]:
    """The first and the last of some starts, as medians of up to three: one alone is chance."""
    few = min(3, max(1, len(starts) // 2))
    first, last = figures.median(starts[:few]), figures.median(starts[-few:])
    return {
        "sandboxes": len(starts),
        "starts": [round(value, 1) for value in starts],
        "first": round(first, 1),
        "last": round(last, 1),
        "ratio": round(last / first, 2) if first else None,
    }


def _settled(runtime: Runtime, before: set[int]) -> memory.Total:
    """Memory of what runs now and did not before, once it has come to rest."""
    runtime.rest()
    time.sleep(_SETTLE_S)
    programs.reap()
    return memory.measure(pid for pid in programs.descendants() if pid not in before)


def remove_all(runtime: Runtime, ids: Sequence[str]) -> None:
    """Remove them all, and collect what ended."""
    runtime.remove(ids)
    programs.reap()
