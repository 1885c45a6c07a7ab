"""How do I judge many programs at once, as a course or a contest does?

A submission reads stdin and writes stdout. Each is run in a sandbox of its own, as many at a time as there
are CPUs; all cases of one run in the same sandbox.

    examples/judge.py
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import bufferzone

#: what is read, and what is right
CASES = [("1 2\n", "3\n"), ("20 22\n", "42\n"), (f"{10**30} 1\n", f"{10**30 + 1}\n")]
SUBMISSIONS = {
    "ann": "print(sum(map(int, input().split())))",
    "bob": "a, b = input().split(); print(int(a) - int(b))",
    "cleo": "a, b = map(int, input().split())\nwhile b: a += 1\nprint(a)",
    "dan": "import os; os.kill(os.getpid(), 11)",
}
#: what a contest calls it when the program did not end by itself
NAMES = {
    "nonzero": "runtime error",
    "signal": "runtime error",
    "timeout": "time limit exceeded",
    "cpu-limit": "time limit exceeded",
    "memory-limit": "memory limit exceeded",
    "output-limit": "output limit exceeded",
}


def judge(source: str) -> str:
    """The verdict: of the first case that fails, or accepted."""
    with bufferzone.Sandbox(memory_mib=256, pids=64) as sb:
        sb.files.write("/srv/submission.py", source)
        for number, (given, right) in enumerate(CASES, 1):
            result = sb.run(
                ["python3", "-I", "/srv/submission.py"],
                stdin=given,
                user="nobody",
                cpu_time_s=5,
                timeout_s=60,
                memory_mib=128,
                output_limit=64 << 10,
            )
            if not result.ok:
                return f"{NAMES[result.verdict]} (case {number})"
            if result.stdout != right:
                return f"wrong answer (case {number})"
    return "accepted"


def main() -> None:
    """Judge all of them; a table in the order of names."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, verdict in zip(SUBMISSIONS, pool.map(judge, SUBMISSIONS.values()), strict=True):
            print(f"{name:5} {verdict}")


if __name__ == "__main__":
    main()
