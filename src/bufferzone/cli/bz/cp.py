"""`bz cp`: files and directories into a container that runs, or out of it."""

from __future__ import annotations

import os
import sys

from bufferzone.cli.bz import chosen
from bufferzone.errors import FileError, UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options
    from bufferzone.library.files import Files

FLAGS = ()
USAGE = "NAME:PATH TARGET|-, or SOURCE|- NAME:PATH"
DESCRIPTION = (
    "As the container's user. Into a directory that is there the source goes under its own name. What comes\n"
    "out is files, directories, and links that stay among them. A name of ours with a colon in it: ./NAME.\n"
    "-: a tar on standard output, or on standard input, for a directory that is there."
)
WORDS = (2, 2)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Copy."""
    (from_name, source), (to_name, target) = (_split(word) for word in words)
    if bool(from_name) == bool(to_name):
        raise UsageError(f"expected {USAGE}, got {shown(' '.join(words))}")
    with chosen.sandbox(options.root, from_name or to_name) as sandbox:
        if "-" in words:
            _tar(sandbox.files, source, target)
        elif to_name:
            if source.endswith("/.") or not _is_directory(sandbox.files, target):
                sandbox.files.copy_in(source, target)
            else:
                sandbox.files.copy_in(source, os.path.join(target, _own_name(os.path.abspath(source))))
        else:
            into = os.path.isdir(target) and not source.endswith("/.")
            sandbox.files.copy_out(source, os.path.join(target, _own_name(source)) if into else target)
    return 0


def _tar(files: Files, source: str, target: str) -> None:
    if source == "-":
        files.unpack(sys.stdin.buffer, target)
        return
    if os.isatty(1):
        raise UsageError("a tar is not for a terminal", hint="redirect standard output")
    files.pack(source, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _split(word: str) -> tuple[str, str]:
    """(container, path inside), or ("", path of the host)."""
    name, colon, path = word.partition(":")
    if not colon or word.startswith(("/", ".")):
        return "", word
    if not name or not path:
        raise UsageError(f"expected NAME:PATH, got {shown(word)}")
    return name, path


def _own_name(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or "root"


def _is_directory(files: Files, path: str) -> bool:
    try:
        return files.stat(path).kind == "directory"
    except FileError as error:
        if error.code in ("no-such-file", "not-a-directory"):
            return False
        raise
