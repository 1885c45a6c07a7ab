"""A runtime of ours that has settings of its own while it has its turn.

They are in our own mount namespace alone: /etc/bufferzone/config.d becomes a directory of ours that shows the
machine's files and, during the turn, one more.
"""

from __future__ import annotations

import os
import shutil

from bufferzone import config
from bufferzone.bench.runtimes import Runtime
from bufferzone.linux import mount

_DROP_INS = os.path.join(config.DIRECTORY, "config.d")
_FILE = os.path.join(_DROP_INS, "zz-bench.toml")


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


class Settings:
    """What is said in addition to the machine's settings. A context: `rows` hold until it is left."""

    def __init__(self, rows: str) -> None:
        self._rows = rows

    def __enter__(self) -> Settings:
        with open(_FILE, "w", encoding="utf-8") as file:
            file.write(self._rows)
        return self

    def __exit__(self, *_: object) -> None:
        os.unlink(_FILE)


class TurnRuntime(Runtime):
    """bufferzone with `rows` of settings while it has its turn."""

    rows = ""
    _turn: Settings | None = None

    def enter(self, size: int) -> None:
        """Begin a turn."""
        self._turn = Settings(self.rows).__enter__()

    def leave(self) -> None:
        """End it."""
        if self._turn is not None:
            self._turn.__exit__()
            self._turn = None
