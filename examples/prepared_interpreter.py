"""How do I answer a first request in the time of a restore?

Prepare an interpreter once: its libraries imported, waiting for code. Each sandbox that is started from there
is a VM of its own that goes on with the next instruction.

    examples/prepared_interpreter.py python-with-numpy
"""

from __future__ import annotations

import sys
import time

import bufferzone

SERVER = """
import contextlib, io, os, traceback
import numpy

os.makedirs("/run", exist_ok=True)
for name in ("ask", "answer"):
    os.mkfifo(f"/run/{name}")
open("/run/ready", "w").close()
while True:
    with open("/run/ask") as file:
        code = file.read()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            numpy.random.seed(int.from_bytes(open("/run/seed", "rb").read(4), "little"))
            exec(code, {"numpy": numpy})
        except Exception:
            traceback.print_exc(file=said)
    with open("/run/answer", "w") as file:
        file.write(said.getvalue())
"""
CODE = "print(numpy.arange(10).sum(), numpy.random.randint(1 << 30))"


def ask(sb: bufferzone.Sandbox, code: str) -> str:
    """What the prepared interpreter prints."""
    return sb.run(["sh", "-c", "cat >/run/ask; cat /run/answer"], stdin=code, timeout_s=60).stdout


def main(image: str) -> None:
    """Answer the same question both ways, and say what each took."""
    bufferzone.Sandbox(image).close()  # pulled before anything is measured
    began = time.monotonic()
    with bufferzone.Sandbox(image, memory_mib=256) as sb:
        said = sb.run(["python3", "-c", f"import numpy; {CODE}"]).stdout
    warm_s = time.monotonic() - began
    print(f"a sandbox, and python3 in it: {said.split()[0]} after {warm_s:.2f} s")

    ready = bufferzone.Snapshot.prepare(
        "numpy",
        image,
        command=["python3", "-c", SERVER],
        ready=["test", "-e", "/run/ready"],
        reseed=bufferzone.Reseed(file="/run/seed"),
        replace=True,
        memory_mib=256,
    )
    drawn = set()
    for _ in range(2):
        began = time.monotonic()
        with ready.start() as sb:
            answer, number = ask(sb, CODE).split()
            restored_s = time.monotonic() - began
        drawn.add(number)
        print(f"a prepared interpreter: {answer} after {restored_s:.2f} s, {restored_s / warm_s:.2f} of it")
    print(f"random numbers: {len(drawn)} different")
    ready.remove()


if __name__ == "__main__":
    main(sys.argv[1])
