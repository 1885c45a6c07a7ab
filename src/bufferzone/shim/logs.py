"""Where the log of a shim goes: to the FIFO of containerd, or to shim.log in the state directory."""

from __future__ import annotations

import os

from bufferzone import log as form


def log_to_containerd(bundle: str) -> None:
    """Log to containerd's FIFO, which it opens before it starts a shim; without one as before."""
    with form.passing_over("log to containerd", OSError):
        fd = os.open(os.path.join(bundle, "log"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(fd, True)
        os.dup2(fd, 2)
        os.close(fd)


def log(text: str) -> None:
    """One line to the log; see `log.say`."""
    form.say(text)


def tell_steps(on: bool) -> None:
    """Whether we, and the programs of ours that we start, tell steps and what is passed over."""
    if on:
        os.environ[form.DEBUG] = form.SHIM
    else:
        os.environ.pop(form.DEBUG, None)  # whoever started us has a log of another form
