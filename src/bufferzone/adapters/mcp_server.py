"""A tool for agents: code that runs in sandboxes, asked for over MCP on standard input and output.

    bufferzone-mcp --image python:3.12-slim --memory-mib 512

Needs the extra `mcp`: pip install bufferzone[mcp]. A session is a sandbox of its own with an interpreter that
remembers; it lasts until it is ended, or the server is.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any  # at run time: the SDK reads the annotations of tools

from bufferzone.adapters.interpreter import Interpreter
from bufferzone.errors import BufferzoneError, UsageError
from bufferzone.library.sandbox import Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcp.server.mcpserver import MCPServer

_INSTRUCTIONS = (
    "Runs untrusted code in virtual machines. A session is one machine: files and the Python interpreter's "
    "names stay until end_session. Sessions see nothing of each other, nor of this host."
)
_MOST_OUTPUT = 256 << 10
_MOST_FILE = 1 << 20
_MOST_SECONDS = 3600.0


class _Session:
    def __init__(self, sandbox: Sandbox, python: str) -> None:
        self.sandbox = sandbox
        self.interpreter = Interpreter(sandbox, python)
        self.lock = threading.Lock()


class Sessions:
    """Sandboxes by name, at most `most`, each made when it is first asked for. Thread-safe."""

    def __init__(self, start: Callable[[], Sandbox], *, most: int, python: str) -> None:
        self._start, self._most, self._python = start, most, python
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> _Session:
        """Raises `UsageError` `many-sessions`, and as `Sandbox`."""
        with self._lock:
            if name not in self._sessions:
                if len(self._sessions) >= self._most:
                    raise UsageError(
                        f"there are {self._most} sessions", hint="end_session", code="many-sessions"
                    )
                self._sessions[name] = _Session(self._start(), self._python)
            return self._sessions[name]

    def end(self, name: str) -> bool:
        """Whether there was one."""
        with self._lock:
            found = self._sessions.pop(name, None)
        if found is not None:
            found.sandbox.remove()
        return found is not None

    def close(self) -> None:
        """End them all."""
        for name in list(self._sessions):
            self.end(name)

    # ---- what an agent may call; the docstrings are for it

    def run_python(self, code: str, session: str = "main", timeout_s: float = 60.0) -> str:
        """Run Python code in the session's interpreter, which remembers names. Returns what it printed, and
        the value of a last expression."""
        found = self.get(session)
        with found.lock:
            answer = found.interpreter.run(code, timeout_s=_seconds(timeout_s))
        text = answer.output[:_MOST_OUTPUT]
        return f"{text}[the interpreter is gone with all its names: {answer.lost}]" if answer.lost else text

    def run_command(
        self, args: list[str], session: str = "main", stdin: str = "", timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """Run a program, args[0], without a shell. Returns exit_code, verdict (ok, nonzero, signal, timeout,
        memory-limit, output-limit), stdout and stderr."""
        box = self.get(session).sandbox
        done = box.run(args, stdin=stdin, timeout_s=_seconds(timeout_s), output_limit=_MOST_OUTPUT)
        return {
            "exit_code": done.exit_code,
            "verdict": done.verdict,
            "stdout": done.stdout,
            "stderr": done.stderr,
        }

    def read_file(self, path: str, session: str = "main") -> str:
        """The text of a file in the session, its first MiB."""
        data = self.get(session).sandbox.files.read(path, size=_MOST_FILE)
        return data.decode("utf-8", "replace")

    def write_file(self, path: str, content: str, session: str = "main") -> str:
        """Make or replace a file in the session."""
        self.get(session).sandbox.files.write(path, content)
        return f"{len(content.encode())} bytes"

    def list_files(self, path: str = ".", session: str = "main") -> list[dict[str, Any]]:
        """Name, kind and size of what is in a directory of the session."""
        found = self.get(session).sandbox.files.list(path)
        return [{"name": file.name, "kind": file.kind, "size": file.size} for file in found]

    def end_session(self, session: str = "main") -> str:
        """End a session with all its files; its name may be used again."""
        return "ended" if self.end(session) else "there is no such session"


def _seconds(value: float) -> float:
    if not 0 < value <= _MOST_SECONDS:
        raise UsageError(f"timeout_s: expected more than 0 and at most {_MOST_SECONDS:g}")
    return value


def server_of(sessions: Sessions) -> MCPServer:
    """The server; its tools fail with one line. Raises `UsageError` where the SDK is missing."""
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ModuleNotFoundError as error:
        hint = "pip install bufferzone[mcp]"
        raise UsageError("the MCP SDK (mcp, version 2) is not installed", hint=hint, code="no-sdk") from error
    import functools

    def told(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            try:
                return method(*args, **options)
            except BufferzoneError as error:
                raise ToolError(f"{error.code}: {error.line()}") from error

        return call

    server = MCPServer("bufferzone", instructions=_INSTRUCTIONS)
    for name in ("run_python", "run_command", "read_file", "write_file", "list_files", "end_session"):
        server.tool()(told(getattr(sessions, name)))
    return server


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, read; one that is wrong ends the program, with 2."""
    parser = argparse.ArgumentParser("bufferzone-mcp", description="Sandboxes for agents, over MCP on stdio.")
    parser.add_argument("--image", help="of every session; else this host's programs and none of its data")
    parser.add_argument("--memory-mib", type=int, default=512)
    parser.add_argument("--cpus", type=float, default=1.0)
    parser.add_argument("--network", choices=("none", "passt"), default="none")
    parser.add_argument("--python", default="python3", help="the interpreter in the image")
    parser.add_argument("--sessions", type=int, default=8, help="how many there may be at a time")
    return parser.parse_args(argv)


def main(argv: Sequence[str], *, root: str = "") -> int:
    """Serve until standard input ends; the exit status. `root`: another state root."""
    told = arguments(argv)

    def start() -> Sandbox:
        return Sandbox(
            told.image, memory_mib=told.memory_mib, cpus=told.cpus, network=told.network, root=root
        )

    sessions = Sessions(start, most=told.sessions, python=told.python)
    try:
        server_of(sessions).run("stdio")
    except BufferzoneError as error:
        print(f"bufferzone-mcp: {error.line()}", file=sys.stderr)
        return 1
    finally:
        sessions.close()
    return 0


def command() -> int:
    """The program that a wheel installs."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
