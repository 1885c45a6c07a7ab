"""`bz drill`: known ways out of a container, taken, with canaries on the host."""

from __future__ import annotations

import json
import os

from bufferzone import config, programs
from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("json", "", "print the outcomes as JSON"),
    Flag("only", "NAMES", "these attacks alone, with commas"),
    Flag("runtime", "PATH", "another OCI runtime; takes --throw-away-host"),
    Flag("throw-away-host", "", "this machine may be broken: under another runtime, attacks work"),
)
USAGE = "[options]"
DESCRIPTION = (
    "Each attack runs as root in a privileged container of its own. A word that only the host has, a\n"
    "process of its, files, settings of its kernel and the runtime's program are compared.\n"
    "The exit status is 1 where one was reached. Guests are crashed; the host is as safe as the wall holds."
)
WORDS = (0, 0)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Become the program that measures: it is above the commands."""
    if os.geteuid() != 0:
        raise HostError("drill needs root: what a break-out would have", hint="run as root")
    hint = "--throw-away-host, if it is one"
    if options.runtime and not options.throw_away_host:
        raise UsageError("under another runtime the attacks reach this host", hint=hint)
    if config.load().vmm == "host" and not options.throw_away_host:
        raise HostError('vmm = "host": there is no wall, and the attacks reach this host', hint=hint)
    only = [name for name in options.only.split(",") if name]
    order = {"drill": True, "only": only, "json": options.json, "runtime": options.runtime}
    order["open"] = options.throw_away_host
    argv = programs.argv("bench", json.dumps(order))
    os.execve(argv[0], argv, programs.ENVIRONMENT)
