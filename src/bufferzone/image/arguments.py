"""The kernel command line of the guest, as data: every argument with its reason on the line above it."""

from __future__ import annotations

ARGUMENTS: tuple[str, ...] = (
    # the serial port is the log that explains a failed boot
    "console=ttyS0",
    # printing costs more than most of what is printed: each byte is an exit, or an emulated register write
    "quiet",
    # a panicking guest must end: QEMU runs with -no-reboot, so an immediate reset becomes the end of the VM
    "panic=-1",
)
