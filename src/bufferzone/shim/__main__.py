"""containerd-shim-bufferzone-v2, and the process behind the CLI: owns one sandbox and speaks the Task API.

serve    called by `bufferzone create`: boot, listen on ROOT/ID/shim.sock, say `ready` on -ready-fd
start    called by containerd: the same as a daemon; prints the socket's address
template called by a shim after a cold boot: make the template that its standard input describes
saver    called by a shim that saves its VM: write the checkpoint, outside of the container's cgroup
pack     called by `bz run --disk`: make one file of the image that standard input describes
delete   called by containerd or `bufferzone delete`: clean up after a shim that is gone
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bufferzone.errors import BufferzoneError, UsageError
from bufferzone.shim import arguments


def command() -> int:
    """The program that a wheel installs, pyproject.toml: `main` with this process's words."""
    return main(sys.argv[1:])


def main(argv: list[str]) -> int:
    """Run one action; returns the exit status. Errors are one line on stderr."""
    os.umask(os.umask(0o077) | 0o022)  # what we make in passing is nobody else's to write
    try:
        parsed = arguments.parse(argv)
        if parsed.action == "version":
            from bufferzone import __version__

            print(f"containerd-shim-bufferzone-v2: {__version__}")
            return 0
        if parsed.action == "info":
            from bufferzone.shim.info import runtime_info

            sys.stdout.buffer.write(runtime_info())
            return 0
        if parsed.action == "template":
            from bufferzone.snapshot import template

            return template.run_maker(0)
        if parsed.action == "saver":
            from bufferzone.snapshot import copier

            return copier.run_saver(0)
        if parsed.action == "pack":
            from bufferzone.sandbox import imagedisk

            return imagedisk.run_packer(0)
        if not parsed.id:
            raise UsageError("flag needs a value: -id")
        if parsed.action == "delete":
            from bufferzone.shim.cleanup import delete

            return delete(parsed)
        from bufferzone.shim import logs

        logs.tell_steps(parsed.debug)
        if parsed.action == "start":
            from bufferzone.shim.start import start

            return start(parsed)
        from bufferzone.shim import daemon

        return daemon.serve(parsed)
    except BufferzoneError as error:
        print(f"containerd-shim-bufferzone-v2: {error.line()}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
