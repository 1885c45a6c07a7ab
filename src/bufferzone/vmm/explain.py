"""Why a VM did not come up or ended: one pure function from what is known to a `VmmError` a person can use.

Refuses to guess from texts: what the guest or the VMM printed is quoted. A text only decides which lines are.
"""

from __future__ import annotations

from bufferzone.errors import VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CONSOLE_LINES = 5
_STDERR_LINES = 5
_PANIC_LINE = "Kernel panic - not syncing"  # kernel/panic.c


def explain(
    phase: str,
    *,
    program: str,
    status: int | None,
    panicked: bool = False,
    reset: bool = False,
    console: Sequence[str] = (),
    stderr: Sequence[str] = (),
    waited_s: float | None = None,
    denied: str = "",
) -> VmmError:
    """The error for a VM that ended, or did not answer, in `phase` (`start the VMM`, `boot the guest`, ...).

    `program` is the VMM's name, `status` its exit status (negative: a signal) or None while it runs;
    `console` and `stderr` are printable lines, oldest first. The message is one line, what was printed is
    quoted in it. `denied` is what a security module had to do with it.
    """
    what, hint, code = _verdict(program, status, panicked, reset, waited_s)
    hint = denied or hint
    parts = [f"the virtual machine {what} during: {phase}"]
    if stderr:
        parts.append(f"{program.lower()} said: " + " | ".join(stderr[-_STDERR_LINES:]))
    if console:
        parts.append("last console lines: " + " | ".join(_telling(console)))
    elif status is None or not stderr:
        parts.append("the console is empty")
    return VmmError("; ".join(parts), hint=hint, code=code)


def _telling(console: Sequence[str]) -> Sequence[str]:
    """The lines to quote: from the kernel's last words on, before its call trace, or the last ones."""
    for index in range(len(console) - 1, -1, -1):
        if _PANIC_LINE in console[index]:
            return console[max(0, index - 1) : index + 2]
    return console[-_CONSOLE_LINES:]


def _verdict(
    program: str, status: int | None, panicked: bool, reset: bool, waited_s: float | None
) -> tuple[str, str, str]:
    """What happened, what to do, and the error's code."""
    if panicked:
        return (
            "ended with a guest kernel panic",
            "see console.log in the state directory",
            "vm-panic",
        )
    if status is None:
        waited = "" if waited_s is None else f" within {waited_s:g} s"
        return f"did not answer{waited}", "a busy host or TCG may need a longer boot timeout", "vm-timeout"
    if status == -9:
        return (
            "was killed (SIGKILL)",
            "look for the kernel's out-of-memory killer in the host's log: dmesg",
            "vm-killed",
        )
    if status == -31:
        return (
            "was killed for a system call that it has no use for (SIGSYS)",
            "its guest may have taken it over; the host's log names the call: dmesg | grep type=1326",
            "vm-killed",
        )
    if status < 0:
        return (
            f"crashed (signal {-status})",
            f"this is a fault of {program} or of its jail, please report it",
            "vm-crashed",
        )
    if status == 0 and reset:
        return (
            "was reset by its guest (a kernel panic or a reboot)",
            "see the console lines; without any, the kernel does not support this virtual machine",
            "vm-reset",
        )
    if status == 0:
        return "powered off", "the guest powered off; see console.log in the state directory", "vm-off"
    return (
        f"failed ({program} exit status {status})",
        f"{program}'s message says what is missing; scripts/install installs its packages",
        "vm-failed",
    )
