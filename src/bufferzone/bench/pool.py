"""The pool as one more runtime: while it has its turn, the settings want VMs that wait; then none do."""

from __future__ import annotations

import os
import time

from bufferzone.bench import programs
from bufferzone.bench.runtimes import VERB_S
from bufferzone.bench.turns import Settings, TurnRuntime
from bufferzone.errors import HostError

_POLL_S = 0.02


class PoolRuntime(TurnRuntime):
    """bufferzone with VMs that wait. Every start waits first, unmeasured, until they do."""

    bz = ""
    _size = 1

    def enter(self, size: int) -> None:
        """Begin a turn: `size` VMs are to wait. Raises `HostError`."""
        self._size = size
        self._turn = Settings(f"{self.rows}[pool]\nsize = {size}\n").__enter__()
        self._ask("start")
        self.rest()

    def leave(self) -> None:
        """End the turn: nothing waits any more, nothing is made in the background."""
        if self._turn is not None:
            super().leave()
            self._ask("stop")

    def rest(self) -> None:
        """Until as many wait as should, and none is being made."""
        end = time.monotonic() + VERB_S
        while True:
            states = self._states()
            if states.count("waiting") >= self._size and "filling" not in states:
                return
            if time.monotonic() > end:
                raise HostError(f"{self.name}: no VM waits after {VERB_S:g} s: {' '.join(states) or 'none'}")
            time.sleep(_POLL_S)

    def _states(self) -> list[str]:
        lines = self._ask("ls").decode("utf-8", "replace").splitlines()[1:]
        return [line.split()[1] for line in lines if len(line.split()) > 1]

    def _ask(self, word: str) -> bytes:
        words = [self.bz, "--root", self.root, "pool", word]
        return programs.run(words, os.path.join(self.directory, "pool.err"), VERB_S).output
