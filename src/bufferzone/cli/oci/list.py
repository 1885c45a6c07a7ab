"""`list`: the containers below the root."""

from __future__ import annotations

from bufferzone import jsontext, state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.errors import BufferzoneError, UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("format f", "table|json", "table or json", default="table"),
    Flag("quiet q", "", "ids only"),
)
USAGE = "[options]"
DESCRIPTION = ""
WORDS = (0, 0)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Print them; a container that is being made or removed at this moment is left out."""
    if options.format not in ("table", "json"):
        raise UsageError(f"invalid format: {shown(options.format)}", hint="table or json")
    root = state.runtime_root(options.root)
    ids = state.list_ids(root)
    if options.quiet:
        output.print_text("".join(f"{id}\n" for id in ids))
        return 0
    states = [found for id in ids if (found := _state(root, id))]
    if options.format == "json":
        output.print_text(jsontext.dumps([_as_runc(found) for found in states]) + "\n")
        return 0
    rows: list[tuple[str, ...]] = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    rows += [
        tuple(str(s[key]) for key in ("id", "pid", "status", "bundle", "created", "owner")) for s in states
    ]
    output.print_table(rows)
    return 0


def _as_runc(found: dict[str, Any]) -> dict[str, Any]:
    """The keys in runc's order, annotations left out where there are none. Source: runc list.go."""
    rest = {key: found[key] for key in ("annotations", "owner") if found[key] or key == "owner"}
    return {**{key: value for key, value in found.items() if key not in ("annotations", "owner")}, **rest}


def _state(root: str, id: str) -> dict[str, Any]:
    try:
        return state.read_state(state.directory(root, id))
    except (BufferzoneError, ValueError):
        return {}
