#!/usr/bin/python3 -I
"""Writes SECURITY.md's table of the helpers' jails from the code that makes them: scripts/jail_table.py

Each row is the `Jail` that a helper is started in. `tests/style/test_docs.py` compares.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src"))
from bufferzone import jail
from bufferzone.linux import landlock
from bufferzone.model import Confinement, Disk, Nic, Share, VmSpec
from bufferzone.network import passt
from bufferzone.record import replace
from bufferzone.shim import rights
from bufferzone.storage import erofs, virtiofs
from bufferzone.vmm.firecracker import driver as firecracker
from bufferzone.vmm.qemu import command_line, driver

PAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "SECURITY.md")
BEGIN, END = "<!-- from scripts/jail_table.py -->\n", "<!-- to here -->\n"
HEAD = (
    "helper",
    "system calls",
    "of these limited to some arguments",
    "capabilities",
    "namespaces of its own",
    "its root, beside libraries and the program",
    "/dev",
    "/proc",
    "descriptors beside the log",
    "by Landlock",
    "limits",
)
_SHIM_HEAD = ("a shim keeps", "which calls ask for it")
_PROGRAM = "/the/program"
_SPEC = VmSpec(
    name="name",
    vcpus=1,
    memory_mib=512,
    accelerator="kvm",
    kernel="/the/kernel",
    initrd="/the/initrd",
    kernel_arguments=(),
    nics=(Nic(name="first", fd=9, mac="52:54:00:00:00:01"),),
)
_CONFINED = Confinement(uid=jail.UID_BASE, gid=jail.UID_BASE)
_LIMITS = {
    number: name
    for name, number in vars(resource).items()
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}


def jails() -> list[jail.Jail]:
    """The jail of every helper that there is, as for a container with a share and a network card."""
    uid = jail.UID_BASE
    found = [
        _qemu(accelerator, restored=restored) for accelerator, restored in (("kvm", True), ("tcg", False))
    ]
    found.append(_firecracker())
    for kind in ("c", "rust"):
        program = virtiofs.Program(kind=kind, path=_PROGRAM)
        numbers = {"tree_fd": 8, "listen_fd": 9, "log_fd": 2, "open_files": 1 << 18}
        found.append(virtiofs.describe_jail(program, uid=uid, gid=uid, **numbers))
    found.append(passt.describe_jail(_PROGRAM, (), uid=uid, fd=5, empty=6, log_fd=2))
    found.append(erofs.describe_jail(_PROGRAM, "/the/tree", 5, uid=uid, log_fd=2, most=1 << 30))
    return found


def _qemu(accelerator: str, *, restored: bool) -> jail.Jail:
    shares, memory = (Share(tag="share", fd=8),), "/the/memory" if restored else ""
    spec = replace(_SPEC, accelerator=accelerator, shares=shares, memory=memory)
    ends = command_line.Ends(agent=3, console=4, control=5)
    return driver.describe_jail(_PROGRAM, spec, _CONFINED, ends, firmware=(), log_fd=2, restored=restored)


def _firecracker() -> jail.Jail:
    spec = replace(_SPEC, disks=(Disk(name="rootfs"),))
    return firecracker.describe_jail(_PROGRAM, spec, _CONFINED, place_fd=8, network=10, log_fd=2)


def row(made: jail.Jail) -> tuple[str, ...]:
    """One helper."""
    libraries = {bind.target for bind in jail.library_view()[0]} | {_PROGRAM}
    root = [
        bind.target + (" (rw)" if bind.writable else "")
        for bind in made.binds
        if bind.target not in libraries
    ]
    where = ", in a user namespace" if made.user_namespace else ""
    names = " ".join(name.removeprefix("CAP_") for name in made.capabilities)
    spaces = ("mnt", *(["user"] if made.user_namespace else []), *made.namespaces)
    limits = [_LIMITS[number].removeprefix("RLIMIT_") for number, _ in (*jail._LIMITS, *made.limits)]
    return (
        made.calls.name,
        str(made.calls.size),
        str(len(made.calls.limited)),
        names + where if names else "none",
        " ".join(spaces),
        " ".join(root) or "nothing",
        " ".join((*made.devices, *made.owned_devices)),
        " ".join((*made.proc, *(f"copy of self/{name}" for name in made.own_proc))) or "none",
        str(len(made.keep_fds)),
        _restricted(made.restricted),
        " ".join(limits),
    )


def _restricted(rules: landlock.Rules | None) -> str:
    if rules is None:
        return "no Landlock"
    written = [*(rules.writable or ()), *(f"all below {path}" for path in rules.trees)]
    files = "files: all" if rules.writable is None else f"writes {' '.join(written)}"
    return f"{files}; TCP: {'none' if rules.ports is None else 'listens where it is told to'}"


def table() -> str:
    """The lines between the marks: the helpers, and what is left to a shim."""
    return _lines(HEAD, map(row, jails())) + "\n" + _lines(_SHIM_HEAD, rights.KEPT.items())


def _lines(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, ("---",) * len(head), *rows))


def page(text: str) -> str:
    """SECURITY.md with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    with open(PAGE, encoding="utf-8") as file:
        written = page(file.read())
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(written)
