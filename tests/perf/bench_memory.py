"""How much memory that a container frees goes back to the host, and when. Asserts nothing.

    python3 tests/perf/bench_memory.py [MIB]

A container fills a tmpfs with MIB (500) and empties it; watched is what QEMU holds of the guest's memory
(RssShmem). Once in a VM that booted cold, once in one restored from a template.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from vm.verbs import PROGRAM, Runtime, await_true, bundle, config  # noqa: E402

LONGEST_S = 30.0
MARKS = (0.25, 0.5, 0.75, 0.9)


def held_mib(pid: int) -> float:
    """What the process holds of shared memory."""
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(rows["RssShmem"].split()[0]) / 1024


def one(base: Path, mib: int, templates: str) -> None:
    """One container, one line."""
    notes = {"bufferzone.templates": templates, "bufferzone.memory": str(mib + 512)}
    value = config("")
    tmpfs = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [f"size={mib + 8}m"]}
    mounts = [*value["mounts"], tmpfs]
    made = bundle(base / templates, annotations=notes, mounts=mounts)
    runtime = Runtime(base / "root")
    try:
        runtime.run(templates, made)
        pid = runtime.helper_pids(templates)["qemu"]
        begun = str(runtime.state(templates)["annotations"]["bufferzone.start"])
        idle = held_mib(pid)
        runtime.ok("exec", templates, "dd", "if=/dev/zero", "of=/tmp/a", "bs=1M", f"count={mib}")
        full = held_mib(pid)
        runtime.ok("exec", templates, "sh", "-c", ": > /tmp/a")
        start, times = time.monotonic(), {}
        for mark in MARKS:
            try:
                await_true(lambda m=mark: full - held_mib(pid) > m * mib, "", LONGEST_S)
            except AssertionError:
                break
            times[mark] = time.monotonic() - start
        back = (full - held_mib(pid)) / mib
        told = ", ".join(f"{mark:.0%} after {seconds:.1f} s" for mark, seconds in times.items())
        print(f"{begun:5} idle {idle:4.0f} MiB, full {full:4.0f}, back {back:5.2f} of what was freed: {told}")
    finally:
        runtime.close()


def main(mib: int) -> None:
    bz = str(Path(PROGRAM).with_name("bz"))
    subprocess.run([bz, "template", "make", "--memory", str(mib + 512)], check=True, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="bz-perf-") as directory:
        for templates in ("false", "true"):
            one(Path(directory), mib, templates)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
