"""`bz shell`: a shell in a container that runs: bash where there is one, else sh."""

from __future__ import annotations

import os

from bufferzone.cli.bz import exec as joining
from bufferzone.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("env e", "K[=V]", "one more environment variable; without a value, ours", kind="list"),
    Flag("env-file", "FILE", "environment variables, one a line", kind="list"),
    Flag("user u", "NAME|UID[:GROUP]", "who runs it"),
    Flag("workdir w", "DIR", "working directory inside"),
)
USAGE = "[options] NAME"
DESCRIPTION = "With a terminal where we have one; else it reads our stdin as a script."
WORDS = (1, 1)
INTERSPERSED = True

_CHOICE = "command -v bash >/dev/null && exec bash; exec sh"


def run(options: Options, words: list[str]) -> int:
    """Be in it."""
    options.take(interactive=True, tty=os.isatty(0) and os.isatty(1), detach=False)
    return joining.run(options, [words[0], "/bin/sh", "-c", _CHOICE])
