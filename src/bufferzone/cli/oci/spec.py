"""`spec`: write a config.json to start from."""

from __future__ import annotations

import json
import os

from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, UsageError
from bufferzone.workload.default_spec import default_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("bundle b", "DIR", "directory to write it to", default="."),
    Flag("rootless", "", "for a user without root's rights"),
)
USAGE = "[options]"
DESCRIPTION = "Runs sh on a terminal in the directory rootfs. A config.json that is there stays as it is."
WORDS = (0, 0)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Write it."""
    path = os.path.join(options.bundle, "config.json")
    text = json.dumps(default_spec(rootless=options.rootless), indent="\t") + "\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        raise UsageError(f"file {path} exists", hint="remove it first") from error
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
    except OSError as error:
        os.unlink(path)
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
    return 0
