"""`checkpoint`: save a running container with its VM into a directory; it ends then, unless it is left."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli.flags import Flag, ignored
from bufferzone.client import checkpoint, container
from bufferzone.errors import CallerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

IMAGE = Flag("image-path", "DIR", "the checkpoint's directory", default="checkpoint")
#: flags that a caller may give without wanting what a VM cannot do
_VALUES = "work-path status-fd manage-cgroups-mode empty-ns"
_SWITCHES = "tcp-established tcp-skip-in-flight ext-unix-sk shell-job file-locks link-remap"
IGNORED = (
    *(ignored(name, "VALUE", "CRIU's") for name in _VALUES.split()),
    *(ignored(name, "", "CRIU's: the whole VM is saved") for name in _SWITCHES.split()),
    ignored("auto-dedup", "", "CRIU's"),
)
_REFUSED = ("parent-path", "page-server", "lazy-pages", "pre-dump")
FLAGS = (
    IMAGE,
    Flag("leave-running", "", "the container goes on"),
    Flag("parent-path", "DIR", "refused: every checkpoint is whole"),
    Flag("page-server", "ADDRESS", "refused: a checkpoint is a directory"),
    Flag("lazy-pages", "", "refused: memory is saved at once"),
    Flag("pre-dump", "", "refused: every checkpoint is whole"),
    *IGNORED,
)
USAGE = "[options] <container-id>"
DESCRIPTION = """Saves memory, devices and disk of the VM. Its container has to have its root file system on a
disk (annotation bufferzone.rootfs=block), no volumes and at most one interface."""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Save it."""
    for name in _REFUSED:
        if getattr(options, name.replace("-", "_")):
            raise CallerError(f"--{name} is not supported: a checkpoint is one whole VM", code="unsupported")
    directory = container.find(options.root, words[0])
    checkpoint.save(directory, state.absolute(options.image_path), leave_running=bool(options.leave_running))
    return 0
