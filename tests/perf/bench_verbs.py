"""How long each verb takes, as a multiple of a bare `python3 -I -S -c pass` in the same run. Asserts nothing.

    python3 tests/perf/bench_verbs.py [ROUNDS]

The VMM is `host`: next to the verb (interpreter, imports, checks, calls) only shim and agent are measured.
`create` includes their start (two more interpreters); `create, refused` is all of it but that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from flow.cli import Cli  # noqa: E402

BARE = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]


def seconds(command: list[str], expected: int = 0) -> float:
    """Wall-clock time of one run."""
    start = time.perf_counter()
    done = subprocess.run(
        command, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    elapsed = time.perf_counter() - start
    assert done.returncode == expected, (command, done.returncode)
    return elapsed


def one_round(bz: Cli, bundle: str, times: dict[str, list[float]]) -> None:
    """The life of one container, every verb once."""
    steps = [
        ("create", ("create", "--bundle", bundle, "one"), 0),
        ("create, refused", ("create", "--bundle", bundle, "one"), 1),
        ("state", ("state", "one"), 0),
        ("start", ("start", "one"), 0),
        ("exec, attached", ("exec", "one", "end", "0"), 0),
        ("list", ("list", "-q"), 0),
        ("kill", ("kill", "one", "KILL"), 0),
        ("delete", ("delete", "one"), 0),
    ]
    times.setdefault("bare python", []).append(seconds(BARE))
    for name, words, expected in steps:
        times.setdefault(name, []).append(seconds(bz.command(*words), expected))


def main(rounds: int) -> None:
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as base:
        bz = Cli(Path(base))
        bundle = str(bz.bundle("pause"))
        for _ in range(rounds + 1):
            one_round(bz, bundle, times)
    bare = sorted(times["bare python"][1:])[rounds // 2]
    print(f"{'verb':18} {'median ms':>9} {'best ms':>8}  x bare    ({rounds} rounds, {os.cpu_count()} CPUs)")
    for name, values in times.items():
        ordered = sorted(values[1:])  # the first round compiles
        median = ordered[rounds // 2]
        print(f"{name:18} {median * 1000:9.1f} {ordered[0] * 1000:8.1f}  {median / bare:6.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
