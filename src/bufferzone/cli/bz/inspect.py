"""`bz inspect`: containers in JSON: their state, what runs them, their config.json."""

from __future__ import annotations

import json

from bufferzone import oci, state
from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = "NAME..."
DESCRIPTION = ""
WORDS = (1, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Print them as one list."""
    forms = [_form(chosen.directory(options.root, name)) for name in words]
    output.print_text(json.dumps(forms, indent=2) + "\n")
    return 0


def _form(directory: str) -> dict[str, Any]:
    found = state.read_state(directory)
    try:
        spec = oci.parse_object(oci.read_bytes(f"{found['bundle']}/config.json"))
    except BufferzoneError:
        spec = {}  # its bundle is gone
    return {**found, "config": spec}
