"""`bz ps`: the containers below the root, with what runs them as the shim recorded it."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import container
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = ""
DESCRIPTION = ""
WORDS = (0, 0)
INTERSPERSED = True

_RECORDED = ("accelerator", "start", "guest-kernel")


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    root = state.runtime_root(options.root)
    rows = [["ID", "STATUS", "ACCELERATOR", "START", "GUEST KERNEL", "CREATED"]]
    for id in state.list_ids(root):
        try:
            found = state.read_state(state.directory(root, id))
        except (BufferzoneError, ValueError):
            continue  # it is being made or removed at this moment
        recorded = [found["annotations"].get(f"bufferzone.{name}", "-") for name in _RECORDED]
        rows.append([id, found["status"], *recorded, found["created"]])
    container.print_table(rows)
    return 0
