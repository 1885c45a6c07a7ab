"""Where the log of a shim goes: to the FIFO of containerd, or to shim.log in the state directory."""

from __future__ import annotations

import contextlib
import os
import time


def log_to_containerd(bundle: str) -> None:
    """Log to containerd's FIFO, which it opens before it starts a shim; without one as before."""
    with contextlib.suppress(OSError):
        fd = os.open(os.path.join(bundle, "log"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(fd, True)
        os.dup2(fd, 2)
        os.close(fd)


def log(text: str) -> None:
    """One line to the log, with the time; control bytes are escaped, since some of it is the guest's."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    with contextlib.suppress(OSError):
        os.write(2, f"{stamp} {line}\n".encode())
