"""The Python library's bars, as ratios within one run. Asserts nothing.

    python3 tests/perf/bench_library.py [ROUNDS]

The VMM is `host`: what a program in a sandbox costs beside the guest's work. One run of `true` through the
connection that the library keeps is compared with the program `bufferzone exec`; then so many runs as make
1,000 in one sandbox, whose shim's memory is told; then 20 sandboxes at once.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from bufferzone import Sandbox, state  # noqa: E402
from flow.test_library import World  # noqa: E402

IMPORT = "import time; began = time.perf_counter(); import bufferzone; print(time.perf_counter() - began)"
RUNS, AT_ONCE = 1000, 20


def import_s() -> float:
    """What `import bufferzone` takes in an interpreter of its own."""
    source = str(HERE.parent / "src")
    words = ["/usr/bin/python3", "-IS", "-c", f"import sys; sys.path.insert(0, {source!r}); {IMPORT}"]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def seconds(work: functools.partial[object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def shim_kib(box: Sandbox) -> int:
    """Anonymous memory of its shim."""
    pid = state.owner_pid(box._directory)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def compare(world: World, box: Sandbox, rounds: int) -> None:
    """One `true` each way, alternating."""
    words = world.cli.command("exec", box.name, "true")
    program = functools.partial(subprocess.run, words, env={}, stdin=subprocess.DEVNULL, check=True)
    bare = functools.partial(subprocess.run, ["/usr/bin/python3", "-ISc", "pass"], check=True)
    times: dict[str, list[float]] = {"exec": [], "run": [], "fresh": [], "bare": []}
    for _ in range(rounds):
        times["exec"].append(seconds(program))
        times["run"].append(seconds(functools.partial(box.run, ["true"])))
        with Sandbox.attach(box.name, root=world.root) as again:
            times["fresh"].append(seconds(functools.partial(again.run, ["true"])))
        times["bare"].append(seconds(bare))
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"bufferzone exec: {middle['exec'] / middle['bare']:.2f} of a bare python3")
    print(f"sb.run through the kept connection: {middle['run'] / middle['exec']:.2f} of bufferzone exec")
    print(f"sb.run through a new connection: {middle['fresh'] / middle['exec']:.2f} of bufferzone exec")


def grow(box: Sandbox) -> None:
    """The shim's memory over many runs."""
    for done in range(RUNS + 1):
        if done in (100, RUNS):
            print(f"shim after {done} runs: {shim_kib(box)} KiB")
        box.run(["true"])


def at_once(world: World) -> None:
    """Sandboxes from one process."""

    def one(number: int) -> bool:
        with world.sandbox() as box:
            return box.run(["echo", str(number)]).stdout == f"{number}\n"

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        right = sum(threads.map(one, range(AT_ONCE)))
    print(f"{AT_ONCE} sandboxes at once: {right} right, after {time.perf_counter() - began:.1f} s")


def main(rounds: int) -> None:
    """All of it."""
    print(f"import bufferzone: {1000 * statistics.median(import_s() for _ in range(rounds)):.1f} ms")
    with tempfile.TemporaryDirectory() as base:
        world = World(Path(base))
        try:
            with world.sandbox() as box:
                compare(world, box, rounds)
                grow(box)
            at_once(world)
        finally:
            world.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
