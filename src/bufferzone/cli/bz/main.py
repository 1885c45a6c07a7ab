"""`bz`: the command for people. Same parser and same way to fail as `bufferzone`, another set of verbs."""

from __future__ import annotations

import os
import sys

from bufferzone import log
from bufferzone.cli import output
from bufferzone.cli.bz import VERBS
from bufferzone.cli.flags import Flag, help_text, parse
from bufferzone.cli.main import check_words, version
from bufferzone.errors import BufferzoneError, ExecError, UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bufferzone.cli.flags import Options

GLOBAL = (
    Flag("root", "DIR", "where the state of containers lies (/run/bufferzone, or below XDG_RUNTIME_DIR)"),
    Flag("debug", "", "tell each step with its time, and where a failure came from"),
    Flag("version v", "", "print the version"),
    Flag("shim", "FILE", "for tests: the Python file to run as the shim", hidden=True),
)
SUMMARY = "containers in virtual machines"
USAGE = "[options] COMMAND"


def command() -> int:
    """The program that a wheel installs, pyproject.toml: `main` with this process's words."""
    return main(sys.argv[1:])


def main(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit status."""
    os.umask(os.umask(0o077) | 0o022)  # what we make in passing is nobody else's to write
    debug, verb = False, ""
    try:
        options, rest = parse(GLOBAL, argv, interspersed=False)
        debug = options.debug
        if debug:
            os.environ[log.DEBUG] = "text "
        if options.version:
            output.print_text(version())
            return 0
        if options.help or not rest:
            rows = "".join(f"   {name.ljust(12)}{summary}\n" for name, summary in VERBS.items())
            text = help_text("bz", SUMMARY, USAGE, "", GLOBAL)
            output.print_text(f"{text}\nCOMMANDS:\n{rows}")
            return 0
        verb = rest[0]
        return _run(verb, rest[1:], options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the boundary: every failure is one line
        log.report(error, debug=debug, program="bz")
        return _status(verb, error)


def _status(verb: str, error: Exception) -> int:
    """Docker's for what runs a process, whose own status must be told from ours: 125, 126 and 127."""
    if verb in ("run", "exec", "shell"):
        codes = {"exec-not-executable": 126, "exec-not-found": 127}
        return codes.get(error.code, 125) if isinstance(error, ExecError) else 125
    return error.exit_status if isinstance(error, BufferzoneError) else 1


def _run(verb: str, words: list[str], options: Options) -> int:
    if verb not in VERBS:
        raise UsageError(f"no such command: {shown(verb)}", hint="bz --help lists them")
    module: Any = __import__(f"bufferzone.cli.bz.{verb}", fromlist=["run"])
    own, rest = parse(module.FLAGS, words, interspersed=module.INTERSPERSED)
    if own.help:
        output.print_text(
            help_text(f"bz {verb}", VERBS[verb], module.USAGE, module.DESCRIPTION, module.FLAGS)
        )
        return 0
    own.take(root=options.root, shim=options.shim)
    check_words(verb, rest, *module.WORDS)
    return int(module.run(own, rest))
