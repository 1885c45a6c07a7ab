"""`bz pool`: the VMs that wait for containers. They come and go by themselves; this is for looking, for a
pool ahead of the first start, and for its end.
"""

from __future__ import annotations

import sys

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.client import pool_keeper
from bufferzone.errors import NotFoundError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (Flag("json", "", "ls: as JSON"),)
USAGE = "[options] ls | start | stop"
DESCRIPTION = (
    "With pool.size = N in the settings, N VMs per shape wait, frozen, for the next containers. ls shows "
    "them, start begins with the settings' shape ahead of the first container, stop ends those that wait: "
    "running containers are not touched."
)
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Do what the word says."""
    actions = {
        "ls": _list_as_json if options.json else _list,
        "start": pool_keeper.begin,
        "stop": pool_keeper.end,
    }
    if words[0] not in actions:
        raise UsageError(f"no such action: {words[0]!a}", hint="ls, start or stop")
    if options.json and words[0] != "ls":
        raise UsageError(f"bz pool {words[0]} has no --json", hint="bz pool ls has")
    actions[words[0]](state.runtime_root(options.root))
    return 0


def _list_as_json(root: str) -> None:
    """`vms` that wait and `notes` for people; no pool is no VM and one note."""
    import json

    output.print_text(json.dumps(_found(root), indent=2) + "\n")


def _found(root: str) -> dict[str, Any]:
    try:
        return pool_keeper.listing(root)
    except NotFoundError as error:
        return {"vms": [], "notes": [error.line()]}


def _list(root: str) -> None:
    rows, found = [["PID", "STATE", "VCPUS", "MEMORY", "AGE"]], _found(root)
    rows += [_row(vm) for vm in found["vms"]]
    output.print_table(rows)
    for note in found["notes"]:
        print(f"bz: {note}", file=sys.stderr)


def _row(vm: dict[str, Any]) -> list[str]:
    size, age = f"{vm['memory_mib']} MiB", f"{vm['age_s']:.0f} s"
    return [str(vm["pid"]), vm["state"], str(vm["vcpus"]), size, age]
