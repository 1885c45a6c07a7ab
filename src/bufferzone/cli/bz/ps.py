"""`bz ps`: the containers below the root, with what runs them."""

from __future__ import annotations

import json

from bufferzone import state
from bufferzone.cli import container
from bufferzone.client import Client
from bufferzone.errors import BufferzoneError
from bufferzone.wire import shim
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = ""
DESCRIPTION = ""
WORDS = (0, 0)
INTERSPERSED = True

_ANSWER_S = 2.0


def run(options: Options, words: list[str]) -> int:
    """Print them; a VM that does not answer has dashes."""
    root = state.runtime_root(options.root)
    rows = [("ID", "STATUS", "ACCELERATOR", "GUEST KERNEL", "CREATED")]
    for id in state.list_ids(root):
        try:
            found = state.read_state(state.directory(root, id))
        except (BufferzoneError, ValueError):
            continue  # it is being made or removed at this moment
        info = _info(state.directory(root, id)) if found["status"] != state.STOPPED else {}
        rows.append(
            (
                id,
                found["status"],
                str(info.get("accelerator", "-")),
                str(info.get("kernel", "-")),
                found["created"],
            )
        )
    container.print_table(rows)
    return 0


def _info(directory: str) -> dict[str, Any]:
    try:
        with Client.connect(directory, _ANSWER_S) as client:
            answer = client.call("Info", Empty(), service=shim.SERVICE, timeout_s=_ANSWER_S)
            value = json.loads(answer.json)
    except (BufferzoneError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
