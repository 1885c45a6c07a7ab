"""`restore`: a new container that goes on where a checkpoint was made."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli.flags import ignored
from bufferzone.cli.oci import checkpoint
from bufferzone.cli.oci import run as run_verb
from bufferzone.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

# Not lsm-mount-context: podman tries it bare and takes "flag needs an argument" for support.
FLAGS = (
    checkpoint.IMAGE,
    *run_verb.FLAGS,
    *checkpoint.IGNORED,
    ignored("lsm-profile", "VALUE", "CRIU's"),
    ignored("lazy-pages", "", "CRIU's"),
)
USAGE = "[options] <container-id>"
DESCRIPTION = """The VM of the checkpoint goes on, with fresh random numbers and clock. The bundle's
config.json has to describe the same container. Needs the QEMU that saved it."""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Restore and let it run."""
    path = state.absolute(options.image_path)
    if not os.path.isdir(path):
        raise UsageError(f"--image-path: no such directory: {path}")
    return run_verb.run_from(options, words, path)
