"""`state`: print the state. The one verb that callers poll, so it imports nothing but the state directory."""

from __future__ import annotations

import os

from bufferzone import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = "<container-id>"
DESCRIPTION = ""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Print the state as JSON."""
    os.write(1, state.state_text(state.directory(state.runtime_root(options.root), words[0])))
    return 0
