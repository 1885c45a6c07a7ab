"""Growth on memory that was touched before, and what touching memory for the first time costs.

A machine that is a VM itself may get its memory from its hypervisor page by page, at the first touch: 2 ms a
MiB where this was found, against 0.2. There the first sandboxes take what earlier programs gave back, and
from some number on each start pays, whatever runs beside it. So the starts are measured once more, each on
memory that a moment ago was ours: what grows then grows with the number of sandboxes.
"""

from __future__ import annotations

import mmap
import time

from bufferzone.bench import figures, memory, programs
from bufferzone.bench.measure import first_and_last, remove_all
from bufferzone.bench.runtimes import VERB_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.bench.measure import Column
    from bufferzone.bench.runtimes import Runtime

#: what one start may take, and more than it does
PIECE = 192 * memory.MIB
#: the share of the machine's free memory that is used for this
_SHARE = 0.75


class Reserve:
    """Up to `pieces` pieces of `PIECE` bytes that we have written to. `costs`: ms of CPU per MiB of each."""

    def __init__(self, pieces: int, deadline: float) -> None:
        most = int(memory.available() * _SHARE) // PIECE
        self._held: list[mmap.mmap] = []
        self.costs: list[float] = []
        while len(self._held) < min(pieces, most) and time.monotonic() < deadline:
            self._held.append(self._touch())

    def _touch(self) -> mmap.mmap:
        piece = mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        piece.madvise(mmap.MADV_HUGEPAGE)
        began = time.thread_time()
        piece[:: mmap.PAGESIZE] = bytes(PIECE // mmap.PAGESIZE)
        self.costs.append((time.thread_time() - began) * 1000 / (PIECE / memory.MIB))
        return piece

    def __len__(self) -> int:
        return len(self._held)

    def give(self) -> None:
        """Give one piece back to the machine."""
        self._held.pop().close()

    def close(self) -> None:
        """Give them all back."""
        while self._held:
            self.give()


def grow(runtime: Runtime, column: Column, count: int, deadline: float) -> None:
    """As `measure.grow`, with a piece of touched memory for each start; starts only.

    Fewer where there is not enough memory or time. What was found is in `column.growth["touched"]`.
    """
    ids: list[str] = []
    started: list[programs.Program] = []
    reserve = Reserve(count, deadline)
    costs = reserve.costs
    try:
        while len(reserve) and time.monotonic() < deadline:
            ids.append(f"t{len(ids)}")
            runtime.rest()
            reserve.give()
            started.append(runtime.start(ids[-1]))
            programs.await_all(started[-1:], VERB_S, first_byte=True)
        starts = [program.first_ms or 0.0 for program in started]
        if starts:
            found = first_and_last(starts)
            found["touch_ms_per_mib"] = [round(figures.percentile(costs, percent), 2) for percent in (10, 90)]
            column.growth["touched"] = found
    finally:
        reserve.close()
        for program in started:
            program.close()
        remove_all(runtime, ids)
