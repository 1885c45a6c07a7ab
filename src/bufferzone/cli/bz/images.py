"""`bz images`: the images that are here; the same as `bz image ls`."""

from __future__ import annotations

import json

from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.images import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (Flag("quiet q", "", "ids alone"), Flag("json", "", "as JSON"))
USAGE = "[options]"
DESCRIPTION = ""
WORDS = (0, 0)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    found = store.ours().images()
    if options.json:
        output.print_text(json.dumps([form(image) for image in found], indent=2) + "\n")
    elif options.quiet:
        output.print_text("".join(f"{image.id}\n" for image in found))
    else:
        rows = [["NAME", "ID", "SIZE", "CREATED"]]
        for image in found:
            for name in image.names or ("<none>",):
                rows.append([name, image.id[:12], size(image.size), image.created[:10]])
        output.print_table(rows)
    return 0


def form(image: store.Stored) -> dict[str, Any]:
    """One image as JSON has it."""
    return {
        "id": image.id,
        "names": list(image.names),
        "digest": image.digest,
        "created": image.created,
        "size": image.size,
        "layers": list(image.layers),
    }


def size(number: int) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
