"""`bz port`: the ports of this host that lead into a container of bz's or of a Python program's."""

from __future__ import annotations

import json

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.cli.flags import Flag
from bufferzone.workload import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("json", "", "as JSON"),)
USAGE = "[options] NAME"
DESCRIPTION = "Ports of a network of Podman's or Docker's are theirs: podman port, docker port."
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Print them, as docker does."""
    directory = chosen.directory(options.root, words[0])
    ports = place.read_ports(str(state.read_state(directory)["bundle"]))
    if options.json:
        forms = [{name: getattr(p, name) for name in ("address", "host", "guest", "protocol")} for p in ports]
        output.print_text(json.dumps(forms, indent=2) + "\n")
        return 0
    for port in ports:
        output.print_text(f"{port.guest}/{port.protocol} -> {port.address or '0.0.0.0'}:{port.host}\n")
    return 0
