"""A Python in a sandbox that remembers: what one piece of code defines, the next one finds."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from bufferzone.adapters import inside
from bufferzone.errors import BufferzoneError, GuestError
from bufferzone.library.trees import write_all
from bufferzone.log import passing_over
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.library.process import Process
    from bufferzone.library.sandbox import Sandbox

#: bytes of one answer: `inside.session.MOST` of output, each at most six in JSON
_MOST = 8 << 20


class Answer(Record):
    """What a piece of code printed, errors among it. `ok`: it raised nothing. `lost`: the interpreter ended,
    or was ended by the time limit, and what it remembered is gone.
    """

    ok: bool
    output: str
    lost: str = ""


class Interpreter:
    """One of `python`, started when it is first asked and again after its end. One caller at a time."""

    def __init__(self, sandbox: Sandbox, python: str = "python3") -> None:
        self._sandbox = sandbox
        program = (Path(inside.__path__[0]) / "session.py").read_text(encoding="utf-8")
        self._args = [python, "-u", "-c", program]
        self._process: Process | None = None

    def run(self, code: str, *, timeout_s: float) -> Answer:
        """Run it. Raises as `Sandbox.start`, and `GuestError` `bad-answer`."""
        if self._process is None:
            self._process = self._sandbox.start(self._args)
        timer = threading.Timer(timeout_s, _kill, [self._process])
        timer.daemon = True
        timer.start()
        try:
            line = self._ask(self._process, code)
        finally:
            timer.cancel()
            timer.join()
        if not line.endswith(b"\n"):
            late = "" if not line else "too much"
            self.close()
            return Answer(ok=False, output="", lost=late or f"it ended, or took more than {timeout_s:g} s")
        return self._read(line)

    def _ask(self, process: Process, code: str) -> bytes:
        try:
            write_all(process.stdin, json.dumps(code).encode() + b"\n")
        except BrokenPipeError:
            return b""
        return bytes(process.stdout.readline(_MOST))

    def _read(self, line: bytes) -> Answer:
        try:
            said = json.loads(line)
            more = int(said["more"])
            text = str(said["output"]) + (f"\n[{more} more bytes]\n" if more else "")
            return Answer(ok=said["ok"] is True, output=text)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.close()
            raise GuestError("what came from the interpreter is no answer", code="bad-answer") from error

    def close(self) -> None:
        """End it; the next call begins another."""
        if self._process is not None:
            _kill(self._process)
            self._process.close()
            self._process = None


def _kill(process: Process) -> None:
    with passing_over("kill an interpreter", BufferzoneError):  # its sandbox has ended
        process.kill()
