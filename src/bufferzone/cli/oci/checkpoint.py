"""`checkpoint` and `restore`: refused in one line; their help exits with 1, which podman takes for "no"."""

from __future__ import annotations

from bufferzone.cli.flags import Flag, ignored
from bufferzone.errors import CallerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

# Not lsm-mount-context: podman tries it bare and takes "flag needs an argument" for support.
_VALUES = """
image-path work-path parent-path status-fd page-server manage-cgroups-mode empty-ns console-socket
pid-file lsm-profile
"""
_SWITCHES = """
leave-running tcp-established tcp-skip-in-flight link-remap ext-unix-sk shell-job lazy-pages file-locks
pre-dump auto-dedup no-subreaper no-pivot
"""
FLAGS: tuple[Flag, ...] = (
    ignored("bundle b", "DIR", "runc's"),
    ignored("detach d", "", "runc's"),
    *(ignored(name, "VALUE", "runc's") for name in _VALUES.split()),
    *(ignored(name, "", "runc's") for name in _SWITCHES.split()),
)
USAGE = "[options] <container-id>"
DESCRIPTION = "Not supported yet: the flags are accepted so that the refusal is the same for every call."
WORDS = (0, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Refuse."""
    raise CallerError(f"{options.verb} is not supported yet", code="unsupported")
