"""A keeper in a thread, with processes that wait and have no VM: what the tests of the pool share."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bufferzone import config, state
from bufferzone.client import pool_claim
from bufferzone.oci import Spec
from bufferzone.pool.keeper import Keeper

FAKE = str(Path(__file__).resolve().parents[1] / "fakes" / "fake_waiter.py")


class Running:
    """A keeper in a thread, whose waiters behave as `modes` say, the last of them for ever."""

    def __init__(self, root: Path, *modes: str, size: int = 1, idle_s: int = 60) -> None:
        self.root, self.modes = root, list(modes) or ["fine"]
        self.settings = config.Settings(pool_size=size, pool_idle_s=idle_s)
        self.directory = root / state.POOL
        self.directory.mkdir(parents=True, exist_ok=True)
        self.spawned: list[int] = []
        self.logged: list[str] = []
        self.keeper = Keeper(str(self.directory), lambda: self.settings, self._spawn, self.logged.append)
        self.keeper.add_stock(config.shape_of(self.settings), {})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.keeper.run()
        finally:
            self.keeper.close()

    def _spawn(self, settings: config.Settings, directory: str) -> tuple[int, socket.socket]:
        mode = self.modes.pop(0) if len(self.modes) > 1 else self.modes[0]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", FAKE, mode, str(self.root / "c")],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
            )
        self.spawned.append(pid)
        return pid, ours

    def ask(self, what: str) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(120)
            sock.connect(str(self.directory / state.POOL_SOCKET))
            sock.sendall(json.dumps({"do": what}).encode() + b"\n")
            found = b""
            while data := sock.recv(1 << 16):
                found += data
            return found

    def await_states(self, *wanted: str) -> list[int]:
        """The pids once the VMs have these states."""
        end = time.monotonic() + 120
        while True:
            rows = json.loads(self.ask("list"))["vms"]
            if tuple(row["state"] for row in rows) == wanted:
                return [row["pid"] for row in rows]
            assert time.monotonic() < end, f"{rows} {self.logged}"

    def claim(self, meanwhile: Callable[[], None] = lambda: None, **spec: object) -> int:
        """What a verb would do; the pid, or 0."""
        directory = self.root / "c"
        directory.mkdir(exist_ok=True)
        found = Spec(dict(spec), "/bundle")
        return pool_claim.claim(str(directory), found, self.settings, meanwhile=meanwhile)

    def end(self) -> None:
        try:
            self.ask("stop")
        except OSError:
            pass  # it has ended, or is just about to
        self._thread.join(120)
        for pid in self.spawned:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # reaped by the keeper


def is_there(pid: int) -> bool:
    """Whether the process lives."""
    return state.process_start(pid) != 0
