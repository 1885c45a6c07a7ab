"""The pool as one more runtime: while it has its turn, the settings want VMs that wait; afterwards none do.

The settings are changed in our own mount namespace alone: /etc/bufferzone/config.d becomes a directory of
ours that shows the machine's files and, while the pool has its turn, one more.
"""

from __future__ import annotations

import os
import shutil
import time

from bufferzone import config
from bufferzone.bench import programs
from bufferzone.bench.runtimes import VERB_S, Runtime
from bufferzone.errors import HostError
from bufferzone.linux import mount

_DROP_INS = os.path.join(config.DIRECTORY, "config.d")
_FILE = os.path.join(_DROP_INS, "zz-bench.toml")
_POLL_S = 0.02


def own_settings(directory: str) -> None:
    """Put a copy of the machine's drop-in settings in place of them; `directory` is new and ours.

    Call in a mount namespace of our own. Raises OSError.
    """
    layer = os.path.join(directory, "etc")
    os.makedirs(os.path.join(layer, "bufferzone/config.d"))
    if os.path.isdir(_DROP_INS):
        shutil.copytree(_DROP_INS, os.path.join(layer, "bufferzone/config.d"), dirs_exist_ok=True)
    else:  # /etc with one more directory in it
        mount.mount("etc", "/etc", "overlay", mount.MS_RDONLY, f"lowerdir={layer}:/etc")
    mount.mount(os.path.join(layer, "bufferzone/config.d"), _DROP_INS, "", mount.MS_BIND)


class PoolRuntime(Runtime):
    """bufferzone with VMs that wait. Every start waits first, unmeasured, until they do."""

    bz = ""
    _size = 1
    _settled = False

    def enter(self, size: int) -> None:
        """Begin a turn: `size` VMs are to wait. Raises `HostError`."""
        if not self._settled:
            own_settings(self.directory)
            self._settled = True
        self._size = size
        with open(_FILE, "w", encoding="utf-8") as file:
            file.write(f"[pool]\nsize = {size}\n")
        self._ask("start")
        self.rest()

    def leave(self) -> None:
        """End the turn: nothing waits any more, nothing is made in the background."""
        if self._settled and os.path.exists(_FILE):
            os.unlink(_FILE)
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
