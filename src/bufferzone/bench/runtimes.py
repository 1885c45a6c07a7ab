"""The runtimes that are compared, and how each is run on this machine.

Refuses to hide a difference: every flag that we add is in the report.
"""

from __future__ import annotations

import os
import shutil
import sys

from bufferzone.bench import bundles, programs
from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COLD, WARM, POOL, FLOOR = "bufferzone-cold", "bufferzone-warm", "bufferzone-pool", "floor"
#: the same with the guest whose kernel is our own, where it has been compiled
LEAN_COLD, LEAN_WARM, LEAN_POOL, LEAN_FLOOR = "lean-cold", "lean-warm", "lean-pool", "lean-floor"
NAMES = ("crun", "runc", "runsc", COLD, WARM, POOL, FLOOR, LEAN_COLD, LEAN_WARM, LEAN_POOL, LEAN_FLOOR)
COLD_NAMES, FLOORS = (COLD, LEAN_COLD), (FLOOR, LEAN_FLOOR)
LEAN_NAMES, POOLS = (LEAN_COLD, LEAN_WARM, LEAN_POOL, LEAN_FLOOR), (POOL, LEAN_POOL)
#: for the meter alone: the root file system is a disk, and there is no file server
BLOCK = "bufferzone-block"
#: flags of foreign runtimes and why; shown in the report
FLAGS = {
    # crun 1.8 refuses a machine with cgroup v1 and a v2 that has controllers of its own
    "crun": ("--cgroup-manager=disabled",),
    "runc": (),
    # what Debian's version can do without KVM; no network for anybody here
    "runsc": ("--platform=ptrace", "--network=none", "--ignore-cgroups"),
}
_PACKAGES = {"crun": "crun", "runc": "runc", "runsc": "runsc"}
_ANNOTATIONS = {
    name: {"bufferzone.templates": "false" if name in COLD_NAMES else "true"}
    for name in (COLD, WARM, POOL, BLOCK, LEAN_COLD, LEAN_WARM, LEAN_POOL)
}
_ANNOTATIONS[BLOCK]["bufferzone.rootfs"] = "block"
#: seconds a verb may take: a cold start on a busy machine is the longest
VERB_S = 120.0
_DEADLINE_POLL_S = 0.01


class Runtime:
    """One column of the report. `reason` says why it cannot be measured; empty when it can."""

    def __init__(self, name: str, prefix: Sequence[str], *, version: str = "", reason: str = "") -> None:
        self.name, self.prefix, self.version, self.reason = name, list(prefix), version, reason
        self.bundle = ""
        self.directory = ""

    @property
    def is_ours(self) -> bool:
        """Whether it is a way to start bufferzone."""
        return self.name in _ANNOTATIONS

    def prepare(self, directory: str, rootfs: str) -> None:
        """Make its state root and its bundle in the new directory `directory`."""
        self.directory = directory
        os.mkdir(directory, 0o711)
        os.mkdir(self.root, 0o711)
        annotations = _ANNOTATIONS.get(self.name, {})
        self.bundle = bundles.make_bundle(os.path.join(directory, "bundle"), rootfs, annotations)

    @property
    def root(self) -> str:
        """Its own state root."""
        return os.path.join(self.directory, "root")

    def command(self, verb: str, *words: str) -> list[str]:
        """The command line of a verb."""
        return [self.prefix[0], "--root", self.root, *self.prefix[1:], verb, *words]

    def start(self, id: str) -> programs.Program:
        """Begin `run --detach`; the first byte comes from the container."""
        detach = "-detach" if self.name == "runsc" else "--detach"
        words = self.command("run", "--bundle", self.bundle, detach, id)
        return programs.Program(words, os.path.join(self.directory, f"{id}.err"))

    def enter(self, size: int) -> None:
        """Its turn begins: it will be asked for up to `size` starts at once."""

    def leave(self) -> None:
        """Its turn is over."""

    def rest(self) -> None:
        """Wait until it does nothing in the background."""

    def verb(self, verb: str, *words: str) -> programs.Program:
        """Run a verb to its end; raises `HostError` when it fails."""
        return programs.run(self.command(verb, *words), os.path.join(self.directory, "verb.err"), VERB_S)

    def remove(self, ids: Sequence[str]) -> None:
        """`delete --force`, for what may be there; failures are of no interest."""
        for id in ids:
            try:
                self.verb("delete", "--force", id)
            except HostError:
                pass  # it never came up


def find(name: str, own_program: str) -> Runtime:
    """The runtime `name` (not the floor); `own_program` is our `bufferzone`."""
    if name in _ANNOTATIONS:
        reason = ""
        if os.geteuid() != 0 and name not in COLD_NAMES:
            reason = "templates are used by root alone"
        return Runtime(name, [own_program], reason=reason)
    path = shutil.which(name, path=programs.ENVIRONMENT["PATH"])
    if path is None:
        return Runtime(name, [name], reason=f"not installed (apt-get install {_PACKAGES[name]})")
    return Runtime(name, [path, *FLAGS[name]])


def read_version(runtime: Runtime) -> str:
    """The first line of `--version`, without the program's name."""
    words = [runtime.prefix[0], "--version"]
    try:
        output = programs.run(words, os.path.join(runtime.directory, "verb.err"), 20.0).output
    except HostError:
        return "unknown"
    line = output.decode("utf-8", "replace").partition("\n")[0]
    return line.rpartition("version ")[2].strip() or "unknown"


def write_program(path: str, module: str) -> str:
    """A command of ours as the installer writes it, for the library that we run from."""
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    lines = (
        f"#!{os.path.realpath(sys.executable)} -ISXutf8",
        "import sys",
        f"sys.path.insert(0, {library!r})",
        f"from {module} import main",
        "sys.exit(main(sys.argv[1:]))",
    )
    with open(path, "x", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    os.chmod(path, 0o755)
    return path
