"""An existing container as the verbs need it: its directory, its status, a call to its shim."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.client import Client
from bufferzone.errors import BufferzoneError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bufferzone.cli.flags import Options
    from bufferzone.wire.proto import Message


def find(options: Options, id: str) -> str:
    """The container's state directory; raises `NotFoundError` or `UsageError`."""
    return state.directory(state.runtime_root(options.root), id)


def ask(directory: str, method: str, request: Message, verb: str, **more: Any) -> Any:
    """One call to the container's shim.

    Raises what the shim refuses with; where there is no shim, `StateError` that `verb` does not fit a stopped
    container, in runc's words where callers match them.
    """
    try:
        with Client.connect(directory) as client:
            return client.call(method, request, **more)
    except BufferzoneError as error:
        if error.code == "shim-gone" and state.status(directory) == state.STOPPED:
            raise refusal(verb, os.path.basename(directory), state.STOPPED) from error
        raise


def refusal(verb: str, id: str, status: str) -> StateError:
    """Why `verb` does not fit a container with this status. Source: runc's libcontainer and its callers."""
    if verb == "kill":
        return StateError("container not running", code="not-running")
    if verb == "start":
        now = "has stopped" if status == state.STOPPED else f"is {status}"
        return StateError(f"cannot start a container that {now}")
    if verb == "delete":
        return StateError(f"cannot delete container {id} that is not stopped: {status}")
    if verb == "exec":
        return StateError(f"cannot exec in a {status} container")
    return StateError(f"cannot {verb} container {id}: it is {status}")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; what is not printable is escaped, since guests name processes."""
    cells = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    print_text("\n".join(lines) + "\n")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_text(text: str) -> None:
    """Write all of it to stdout."""
    view = memoryview(text.encode("utf-8", "backslashreplace"))
    while view:
        view = view[os.write(1, view) :]
