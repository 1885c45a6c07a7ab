"""`bz log`: what the flight recorder has, and whether it is what was written."""

from __future__ import annotations

import json

from bufferzone import config
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("id", "ID", "show: of this container or sandbox alone"),
    Flag("json", "", "show: the lines as they are"),
    Flag("head", "HASH", "verify: a hash that `bz log head` printed before has to be in it"),
)
USAGE = "[options] show | verify | head"
DESCRIPTION = (
    "`recorder = true` in the settings has a line written for each event of a container. verify reads all\n"
    "and ends with 1 where one was changed, left out, moved or cut off. head prints number and hash of the\n"
    "last: kept on another machine, it shows whether all was made anew since."
)
WORDS = (1, 1)
INTERSPERSED = True

_OWN = ("seq", "time", "id", "event", "prev", "hash")


def run(options: Options, words: list[str]) -> int:
    """Do what the word says."""
    from bufferzone import recorder

    actions: dict[str, Any] = {"show": _show, "verify": _verify, "head": _head}
    if words[0] not in actions:
        raise UsageError(f"no such action: {words[0]!a}", hint="show, verify or head")
    return int(actions[words[0]](options, recorder.place(config.load())))


def _show(options: Options, directory: str) -> int:
    from bufferzone.recorder import chain

    for where, line in chain.lines(directory):
        try:
            value = json.loads(line)
            text = "" if options.id and value["id"] != options.id else _row(value)
        except (ValueError, TypeError, KeyError):
            raise HostError(f"{where} is no record", hint="bz log verify", code="no-record") from None
        if text:
            output.print_text(line.decode("ascii", "backslashreplace") if options.json else text)
    return 0


def _row(value: dict[str, Any]) -> str:
    facts = " ".join(f"{key}={json.dumps(each)}" for key, each in value.items() if key not in _OWN)
    return f"{value['time']} {value['id']} {value['event']} {facts}".rstrip() + "\n"


def _verify(options: Options, directory: str) -> int:
    from bufferzone.recorder import chain

    found = chain.verify(directory, options.head)
    if found.fault:
        output.print_text(f"damaged after {found.lines} lines: {found.fault}\n")
        return 1
    output.print_text(f"{found.lines} lines, all as they were written; the last is {found.seq}\n")
    return 0


def _head(options: Options, directory: str) -> int:
    from bufferzone.recorder import journal

    try:
        head = journal.read_head(directory)
    except (OSError, ValueError) as error:
        raise HostError(f"cannot read the head: {error}", code="no-records") from error
    output.print_text(f"{head.seq} {head.hash}\n")
    return 0
