"""The boot timeline: when each phase ended, in milliseconds since the shim began."""

from __future__ import annotations

import time

from bufferzone import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.wire.agent import Phase


#: how the name of a phase begins that the guest told
GUEST = "guest: "


class Timeline:
    """Phases in order of their end; the current one is what a failure happened in."""

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        self._marks: list[tuple[str, float]] = []
        self.phase = "prepare"

    def enter(self, phase: str) -> None:
        """The current phase ended; `phase` begins."""
        self._mark(self.phase)
        self.phase = phase
        log.debug(f"begins: {phase}")

    def finish(self) -> None:
        """The last phase ended."""
        self._mark(self.phase)
        self.phase = "run"

    def add_guest(self, phases: Sequence[Phase]) -> None:
        """The guest's own phases, told by the agent, set before now: their clock started with its kernel."""
        if not phases:
            return
        now = self._now_ms()
        last = phases[-1].at_ns / 1e6
        for phase in phases[:64]:
            self._marks.append((f"{GUEST}{phase.name[:40]}", round(now - (last - phase.at_ns / 1e6), 1)))
        self._marks.sort(key=lambda mark: mark[1])

    def marks(self) -> list[tuple[str, float]]:
        """(phase, end in ms) in order."""
        return list(self._marks)

    def _mark(self, phase: str) -> None:
        self._marks.append((phase, self._now_ms()))

    def _now_ms(self) -> float:
        return round((time.monotonic_ns() - self._start_ns) / 1e6, 1)
