"""What KVM counts for a cold start, a warm start and an exec: figures that depend on no machine's speed.
Asserts nothing.

    python3 tests/perf/count_exits.py IMAGE [RUNS]

Needs root, KVM, debugfs, Podman with what `scripts/install` puts in place, IMAGE in its store, and a template
(`bz template make`). A start is counted from its VM's first instruction to the answer of `podman run -d`, an
exec from before `podman exec` to after it, less what the idle VM does in that time.
Source: arch/x86/kvm/x86.c, kvm_vcpu_stats_desc.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from first_container import sandbox_info

DEBUGFS = Path("/sys/kernel/debug/kvm")
KEYS = ("exits", "mmio_exits", "io_exits", "halt_exits", "irq_exits", "pf_taken", "pf_fixed")
COLD = ("--annotation", "bufferzone.templates=false")


def podman(*words: str) -> str:
    """What Podman printed."""
    command = ("podman", "--runtime", "bufferzone", *words)
    return subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def counts(vmm_pid: object) -> dict[str, int]:
    """The VM's counters, those that this kernel has."""
    (directory,) = DEBUGFS.glob(f"{vmm_pid}-*")
    return {key: int((directory / key).read_text()) for key in KEYS if (directory / key).exists()}


def one(image: str, *options: str) -> tuple[dict[str, int], dict[str, int]]:
    """Of one container: (its start, one exec in it)."""
    id = podman("run", "-d", "--network", "none", *options, image, "sleep", "100000")
    try:
        pid = sandbox_info(id)["vmm_pid"]
        start = counts(pid)
        podman("exec", id, "true")  # the first one finds less in memory
        began, before = time.monotonic(), counts(pid)
        podman("exec", id, "true")
        took, after = time.monotonic() - began, counts(pid)
        threading.Event().wait(took)  # nobody sets it: the VM idles for as long as the exec took
        idle = counts(pid)
    finally:
        podman("rm", "--force", "--time", "0", id)
    return start, {key: 2 * after[key] - before[key] - idle[key] for key in after}


def main(image: str, runs: int) -> None:
    found: dict[str, list[dict[str, int]]] = {"cold start": [], "warm start": [], "exec": []}
    for _ in range(runs):
        for name, options in (("cold start", COLD), ("warm start", ())):
            start, execution = one(image, *options)
            found[name].append(start)
            found["exec"].append(execution)
    keys = list(found["exec"][0])
    print(f"| | {' | '.join(keys)} |")
    for name, rows in found.items():
        medians = (int(statistics.median(row[key] for row in rows)) for key in keys)
        print(f"| {name} | {' | '.join(map(str, medians))} |")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
