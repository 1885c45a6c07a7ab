"""The programs that we start, ours and others: one way to say how, one to find them. Starts nothing.

    shim   owns one sandbox, and makes templates and checkpoints    pool   keeps and boots VMs that wait
    client stands for a process of a container on the host          bench  measures

Each is a package's `__main__.py`, run by the interpreter that runs us: isolated, without site, in UTF-8.
"""

from __future__ import annotations

import os
import sys

#: what every program of ours may count on, whoever starts it
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

#: where our modules lie: another version of us has another place
PLACE = os.path.dirname(os.path.abspath(__file__))


def argv(package: str, *arguments: str, program: str = "") -> list[str]:
    """The command line of a package's program; `program` is a Python file to run in its place."""
    python = sys.executable or "/usr/bin/python3"
    return [python, "-I", "-S", "-Xutf8", program or f"{PLACE}/{package}/__main__.py", *arguments]


def find(name: str, places: tuple[str, ...]) -> str:
    """The real path of a program of others in the first of these directories that has it, else "".

    Not `PATH`, which is the caller's; not `shutil.which`: its import costs a third of an interpreter's start.
    """
    for place in places:
        path = f"{place}/{name}"
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return os.path.realpath(path)
    return ""
