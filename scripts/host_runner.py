"""Runs commands inside the machine of scripts/host, asked for through a virtio-serial port.

A line of JSON comes in, {"argv": [...], "directory": "/..."}; lines go out: {"out": TEXT} while the command
prints (stdout and stderr in one), {"status": N} at its end. One command at a time. Whoever runs this (root,
or the user manager of an ordinary user) is who runs the commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

_CHUNK = 1 << 14


def main(port: str) -> int:
    fd = os.open(port, os.O_RDWR)
    requests = os.fdopen(os.dup(fd), "rb")
    _say(fd, {"ready": os.getuid()})
    for line in requests:
        request = json.loads(line)
        _say(fd, {"status": _run(fd, request["argv"], request["directory"])})
    return 0


def _run(fd: int, argv: list[str], directory: str) -> int:
    try:
        process = subprocess.Popen(
            argv,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
    except OSError as error:
        _say(fd, {"out": f"{argv[0]}: {error.strerror}\n"})
        return 127
    assert process.stdout is not None
    while data := process.stdout.read(_CHUNK):
        _say(fd, {"out": data.decode("utf-8", "replace")})
    return process.wait()


def _say(fd: int, value: dict[str, object]) -> None:
    view = memoryview(json.dumps(value).encode() + b"\n")
    while view:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
