"""What sandboxes cost the host in memory: proportional set sizes from /proc/PID/smaps_rollup.

A page that k processes map counts 1/k for each of them, so sums over all processes are true. What they do not
show are pages of a memory file that nobody has mapped yet: a restored VM's memory is copied into its file by
the shim, and counts for QEMU only where the guest has touched it. `File` tells those apart.
Source: proc(5), Documentation/filesystems/proc.rst of Linux 6.1.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MIB = 1 << 20
_KIB = 1 << 10
#: a process by what its argv[0] or its script is called -> role; the first that fits
_ROLES = (
    ("qemu-system", "QEMU"),
    ("virtiofsd", "virtiofsd"),
    ("/shim/__main__.py", "shim"),
    ("/pool/__main__.py", "shim"),  # one that waited in the pool
    ("runsc-sandbox", "runsc-sandbox"),
    ("runsc-gofer", "runsc-gofer"),
    ("/bin/sh", "container"),
    ("sleep", "container"),
    ("bufferzone", "waiter"),
)
VMM_ROLES = frozenset({"QEMU", "runsc-sandbox"})


class Usage:
    """One process: `role`, and bytes of proportional set size, in all and by kind."""

    def __init__(self, pid: int, role: str, numbers: dict[str, int]) -> None:
        self.pid, self.role = pid, role
        self.pss = numbers.get("Pss", 0)
        self.anonymous = numbers.get("Pss_Anon", 0)
        self.file = numbers.get("Pss_File", 0)
        self.shared = numbers.get("Pss_Shmem", 0)


class Total:
    """Sums over processes, in bytes."""

    def __init__(self, usages: Iterable[Usage], unmapped: int) -> None:
        self.by_role: dict[str, dict[str, int]] = {}
        self.vmm = self.other = 0
        self.unmapped = unmapped
        for usage in usages:
            row = self.by_role.setdefault(
                usage.role, {"processes": 0, "pss": 0, "anonymous": 0, "file": 0, "shared": 0}
            )
            row["processes"] += 1
            for name in ("pss", "anonymous", "file", "shared"):
                row[name] += getattr(usage, name)
            if usage.role in VMM_ROLES:
                self.vmm += usage.pss
            else:
                self.other += usage.pss


def parse_rollup(text: str) -> dict[str, int]:
    """`Name: N kB` lines as bytes by name; lines of another form are left out."""
    numbers = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            numbers[name] = int(words[0]) * _KIB
    return numbers


def role_of(command: bytes) -> str:
    """What the process with this /proc/PID/cmdline is; `other` when it is not known."""
    text = command.replace(b"\0", b" ").decode("utf-8", "replace")
    words = text.split()
    for wanted, role in _ROLES:
        if words and (wanted in words[0] or any(wanted in word for word in words[1:6])):
            return role
    return "other"


def measure(pids: Iterable[int]) -> Total:
    """The processes that are there, together; one that ends meanwhile is left out."""
    usages, unmapped = [], 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                role = role_of(file.read())
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as text:
                usages.append(Usage(pid, role, parse_rollup(text.read())))
            if role == "QEMU":
                unmapped += unmapped_memory(pid)
        except OSError:
            continue  # it has ended
    return Total(usages, unmapped)


def unmapped_memory(pid: int) -> int:
    """Bytes of the guest's memory file that are allocated and that QEMU has not mapped; 0 if not known."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for area, resident in parse_areas(file.read()):
            if area.endswith(("/memory", "/memfd:memory-backend-memfd (deleted)")):
                try:
                    allocated = os.stat(f"/proc/{pid}/map_files/{area.split()[0]}").st_blocks * 512
                except OSError:
                    return 0
                return max(0, allocated - resident)
    return 0


def parse_areas(text: str) -> list[tuple[str, int]]:
    """(header line, resident bytes) of every mapping in a /proc/PID/smaps."""
    areas: list[tuple[str, int]] = []
    header = ""
    for line in text.splitlines():
        first = line.split(" ", 1)[0]
        if "-" in first and not first.endswith(":"):
            header = line
        elif line.startswith("Rss:"):
            areas.append((header, int(line.split()[1]) * _KIB))
    return areas


def available() -> int:
    """MemAvailable of the machine, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return parse_rollup(file.read()).get("MemAvailable", 0)


def one_more(first: Total, last: Total, added: int) -> dict[str, float]:
    """MiB that each of `added` sandboxes between two measurements added."""
    scale = 1 / (added * MIB)
    return {
        "pss": round((last.vmm + last.other - first.vmm - first.other) * scale, 1),
        "vmm": round((last.vmm - first.vmm) * scale, 1),
        "not_vmm": round((last.other - first.other) * scale, 1),
        "unmapped": round((last.unmapped - first.unmapped) * scale, 1),
    }


def by_role(first: Total, last: Total, added: int) -> dict[str, dict[str, float]]:
    """The same for each role and kind of page."""
    rows = {}
    for role, row in last.by_role.items():
        before = first.by_role.get(role, {})
        rows[role] = {
            name: round((value - before.get(name, 0)) / added / (1 if name == "processes" else MIB), 2)
            for name, value in row.items()
        }
    return rows
