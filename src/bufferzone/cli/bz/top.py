"""`bz top`: the processes of a container, as its kernel tells them."""

from __future__ import annotations

import json
import os

from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.cli.flags import Flag
from bufferzone.cli.oci import ps
from bufferzone.client import container
from bufferzone.wire import agent, shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("json", "", "as JSON"),)
USAGE = "[options] NAME [ps options]"
DESCRIPTION = "Pids are the guest's."
WORDS = (1, -1)
INTERSPERSED = False


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    directory = chosen.directory(options.root, words[0])
    columns = ps.columns_of(words[1:])
    ref = agent.ProcessRef(id=os.path.basename(directory))
    found = container.ask(directory, "Processes", ref, "list the processes of", service=shim.SERVICE)
    if options.json:
        forms = [
            {
                name: getattr(one, name)
                for name in ("uid", "pid", "ppid", "start_s", "tty", "cpu_ms", "command")
            }
            for one in found.processes
        ]
        output.print_text(json.dumps(forms, indent=2) + "\n")
        return 0
    rows = [ps.HEADER, *(ps.row(process) for process in found.processes)]
    ps.print_columns(rows, columns)
    return 0
