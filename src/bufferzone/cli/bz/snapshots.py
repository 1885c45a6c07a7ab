"""`bz snapshots`: what was saved by `bz snapshot` and the library; `rm` removes it."""

from __future__ import annotations

import json

from bufferzone.cli import output
from bufferzone.cli.bz.images import size
from bufferzone.cli.flags import Flag
from bufferzone.errors import UsageError
from bufferzone.log import shown
from bufferzone.workload import snapshots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("quiet q", "", "names alone"), Flag("json", "", "as JSON"))
USAGE = "[options] [ls | rm NAME...]"
DESCRIPTION = "What was started from one that is removed goes on."
WORDS = (0, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Print or remove them."""
    if words[:1] == ["rm"] and words[1:]:
        for name in words[1:]:
            snapshots.remove(name)
            output.print_text(f"{name}\n")
        return 0
    if words not in ([], ["ls"]):
        raise UsageError(f"expected ls or rm NAME..., got {shown(' '.join(words))}")
    found = [(name, snapshots.find(name)) for name in snapshots.names()]
    if options.json:
        forms = [
            {"name": name, "created": snapshots.created(path), "size": snapshots.size(path)}
            for name, path in found
        ]
        output.print_text(json.dumps(forms, indent=2) + "\n")
    elif options.quiet:
        output.print_text("".join(f"{name}\n" for name, _ in found))
    else:
        rows = [[name, size(snapshots.size(path)), snapshots.created(path)[:19]] for name, path in found]
        output.print_table([["NAME", "SIZE", "CREATED"], *rows])
    return 0
