"""What `create` and `exec` are given alike: descriptors, a pid file, a terminal."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli.flags import Flag
from bufferzone.errors import CallerError, UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.cli.flags import Options

PRESERVE_FDS = Flag("preserve-fds", "N", "0; host descriptors cannot enter a VM", kind="int", default=0)
#: what a verb is given by its caller is what the process in the VM gets
STDIO = (0, 1, 2)


def pid_file(options: Options) -> str:
    """--pid-file as an absolute path, or empty; raises `UsageError` now for what the end of a boot would
    need.
    """
    path = options.pid_file and state.absolute(options.pid_file)
    if path and not os.path.isdir(directory := os.path.dirname(path)):
        raise UsageError(f"--pid-file: no such directory: {directory}")
    return str(path)


def console_socket(options: Options) -> str:
    """--console-socket as an absolute path, or empty; raises `UsageError` when it is none."""
    path = options.console_socket and state.absolute(options.console_socket)
    if path and not _is_socket(path):
        raise UsageError(f"--console-socket: not a unix socket: {path}")
    return str(path)


def _is_socket(path: str) -> bool:
    try:
        return os.stat(path).st_mode & 0o170000 == 0o140000  # the stat module costs an import
    except OSError:
        return False


def refuse_descriptors(options: Options) -> None:
    """--preserve-fds above 0 cannot be honoured."""
    if options.preserve_fds > 0:
        raise CallerError(
            "host descriptors cannot be passed into a virtual machine: --preserve-fds",
            hint="stdin, stdout and stderr are carried; what is in a file can be a volume",
            code="preserve-fds",
        )


def refuse_activation() -> None:
    """Nor can the sockets that systemd or another caller opened for us, sd_listen_fds(3)."""
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    if count.strip("0").isdigit() and pid in ("", str(os.getpid())):
        raise CallerError(
            f"host descriptors cannot be passed into a virtual machine: LISTEN_FDS={count}",
            hint="unset LISTEN_FDS: what listens in the container must open its own socket",
            code="preserve-fds",
        )


def warn_of_capabilities(process: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Those that no kernel grants are left out, in runc's words. Source: config.md "Linux Process": they
    "MUST be logged as a warning". Call it last: after an error Podman wants that alone in the log.
    """
    names = {name for names in process.get("capabilities", {}).values() for name in names}
    if names:
        from bufferzone.linux.capability_names import CAPABILITIES

        if unknown := sorted(names.difference(CAPABILITIES)):
            warn(f"ignoring unknown or unavailable capabilities: [{shown(' '.join(unknown))}]")


def check_console(options: Options, terminal: bool, *, detached: bool) -> None:
    """A detached terminal needs a console socket, and only that may have one. Source: runc utils_linux.go."""
    if terminal and detached and not options.console_socket:
        raise UsageError("cannot allocate a terminal when detached without --console-socket")
    if options.console_socket and not (terminal and detached):
        raise UsageError(
            "--console-socket is for a detached process with a terminal", hint="process.terminal: true"
        )
