"""`bz ps`: the containers below the root, with what runs them as the shim recorded it, and what their egress
policies denied."""

from __future__ import annotations

import json

from bufferzone import state
from bufferzone.cli import output
from bufferzone.client.connection import Client
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

_ANSWER_S = 5.0
_RECORDED = ("accelerator", "start", "guest-kernel")


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    root = state.runtime_root(options.root)
    rows = [["ID", "STATUS", "ACCELERATOR", "START", "GUEST KERNEL", "DENIED", "CREATED"]]
    for id in state.list_ids(root):
        try:
            found = state.read_state(state.directory(root, id))
        except (BufferzoneError, ValueError):
            continue  # it is being made or removed at this moment
        recorded = [found["annotations"].get(f"bufferzone.{name}", "-") for name in _RECORDED]
        denied = _denied(state.directory(root, id), found)
        rows.append([id, found["status"], *recorded, denied, found["created"]])
    output.print_table(rows)
    return 0


def _denied(directory: str, found: dict[str, Any]) -> str:
    """Packets denied: what the shim says now, else what it recorded last; `-` without a policy."""
    recorded = str(found["annotations"].get("bufferzone.egress-denied", "-"))
    if recorded == "-" or found["status"] == state.STOPPED:
        return recorded
    try:
        with Client.connect(directory) as client:
            answer = client.call("Info", Empty(), service=shim.SERVICE, timeout_s=_ANSWER_S)
        return str(json.loads(answer.json)["egress_denied"])
    except BufferzoneError:
        return recorded
