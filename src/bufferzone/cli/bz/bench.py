"""`bz bench`: bufferzone's times and sizes beside those of other runtimes, in one run on this machine."""

from __future__ import annotations

import json
import os

from bufferzone import programs
from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

NAMES = (
    *("crun", "runc", "runsc", "bufferzone-cold", "bufferzone-warm", "bufferzone-pool", "floor"),
    *("lean-cold", "lean-warm", "lean-pool", "lean-floor"),
)
FLAGS = (
    Flag("runs", "N", "rounds; in each, every runtime has its turn", kind="int", default=10),
    Flag("only", "NAMES", "these alone, with commas: " + ", ".join(NAMES)),
    Flag("sandboxes", "N", "how many at once in the last part; 0 leaves it out", kind="int", default=50),
    Flag("minutes", "N", "begin nothing new after that", kind="int", default=30),
    Flag("quick", "", "3 rounds, 4 sandboxes, at most 2 in parallel, unless told otherwise"),
    Flag("json", "", "print the report as JSON, with every sample"),
    Flag("profile", "", "show where the milliseconds and the MiB go as well"),
    Flag("plot", "FILE", "draw a PNG; takes python3-matplotlib"),
)
USAGE = "[options]"
DESCRIPTION = (
    "Every runtime runs the same process in the same root file system, in turn. Measured are start to the\n"
    "first byte of stdout, exec, state, delete, starts side by side, memory of one more sandbox, and how\n"
    "starts grow with the number of sandboxes. The floor is the same QEMU restoring the same template with\n"
    "nothing around it. The lean ones are ours with the guest of `bz setup --guest lean`.\n"
    "What is not installed is left out, and named. The machine should do nothing else."
)
WORDS = (0, 0)
INTERSPERSED = True

_QUICK = {"runs": 3, "sandboxes": 4}
_PARALLEL, _QUICK_PARALLEL = (1, 2, 4, 8), (1, 2)


def run(options: Options, words: list[str]) -> int:
    """Become the program that measures: it is above the commands, and a ^C is for it alone."""
    order = order_of(options)
    if os.geteuid() != 0:
        raise HostError("bench needs root: the other runtimes and templates do", hint="run as root")
    argv = programs.argv("bench", json.dumps(order))
    os.execve(argv[0], argv, programs.ENVIRONMENT)


def order_of(options: Options) -> dict[str, object]:
    """The options as the program takes them; raises `UsageError`."""
    only = [name for name in options.only.split(",") if name]
    for name in only:
        if name not in NAMES:
            raise UsageError(f"--only: no such runtime: {name!a}", hint=", ".join(NAMES))
    numbers = {name: getattr(options, name) for name in ("runs", "sandboxes", "minutes")}
    if options.quick:
        numbers |= {name: value for name, value in _QUICK.items() if name not in options.given}
    for name, (least, most) in {"runs": (1, 1000), "sandboxes": (0, 1000), "minutes": (1, 1440)}.items():
        if not least <= numbers[name] <= most:
            raise UsageError(f"--{name}: must be {least} to {most}, got {numbers[name]}")
    plot = os.path.abspath(options.plot) if options.plot else ""
    if plot and not os.path.isdir(os.path.dirname(plot)):
        raise UsageError(f"--plot: no such directory: {os.path.dirname(plot)!a}")
    parallel = _QUICK_PARALLEL if options.quick else _PARALLEL
    shape = {"json": options.json, "profile": options.profile, "plot": plot}
    return {"only": only, "parallel": parallel, **numbers, **shape}
