"""How do I see what a program writes while it runs, talk with it, and stop it?

`start` returns at once, with the program's streams; leaving the `with` block ends the program.

    examples/stream_output.py
"""

from __future__ import annotations

import bufferzone

STEPS = """
import time
for step in range(3):
    print("step", step, flush=True)
    time.sleep(0.2)
"""
CALCULATOR = """
import ast
while True:
    print(ast.literal_eval(input()) * 2, flush=True)
"""


def main() -> None:
    """Three programs, one after another, in one sandbox."""
    with bufferzone.Sandbox(memory_mib=256) as sb:
        with sb.start(["python3", "-u", "-c", STEPS]) as process:
            for line in process.stdout:
                running = "runs" if process.poll() is None else "has ended"
                print(f"{line.decode().strip()} ({running})")
            print("ended with", process.wait().exit_code)

        with sb.start(["python3", "-c", CALCULATOR]) as process:
            for question in ("21", "[1, 2]"):
                process.stdin.write(f"{question}\n".encode())
                print(question, "twice is", process.stdout.readline().decode().strip())
            process.signal("TERM")
            print("stopped by signal", process.wait().signal)

        with sb.start(["sh", "-c", "stty size; tty"], pty=(100, 30)) as process:
            print("terminal:", *process.stdout.read().decode().split())


if __name__ == "__main__":
    main()
