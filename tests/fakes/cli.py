"""Runs the verbs as real programs against the fake shim, each test in a state root of its own."""

from __future__ import annotations

import copy
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from bufferzone import state
from bufferzone.cli.oci.spec import default_spec

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / "bin" / "bufferzone")
FAKE_SHIM = str(ROOT / "tests" / "fakes" / "fake_shim.py")
FAKE_CONMON = str(ROOT / "tests" / "fakes" / "fake_conmon.py")
DEADLINE_S = 120


class Cli:
    """A state root, bundles, and a way to run verbs; `close` kills every shim that a test left."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "root"
        self.root.mkdir(mode=0o700)
        self._running: list[subprocess.Popen[str]] = []

    def command(self, *words: str) -> list[str]:
        return [PROGRAM, "--root", str(self.root), "--shim", FAKE_SHIM, *words]

    def __call__(self, *words: str, check: int | None = 0, **more) -> subprocess.CompletedProcess[str]:
        """Run a verb with an empty environment; its exit status must be `check` unless that is None."""
        more.setdefault("stdin", subprocess.DEVNULL if "input" not in more else None)
        if more["stdin"] is None:
            del more["stdin"]
        done = subprocess.run(
            self.command(*words), env={}, capture_output=True, text=True, timeout=DEADLINE_S, **more
        )
        if check is not None:
            assert done.returncode == check, (words, done.returncode, done.stdout, done.stderr)
        return done

    def create(self, id: str, bundle: Path, *flags: str, check: int | None = 0) -> str:
        """`create` with stdio that nobody waits for; returns what it wrote to stderr."""
        with open(self.base / f"{id[:20]}.err", "w+") as errors:
            done = subprocess.run(
                self.command("create", "--bundle", str(bundle), *flags, id),
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=DEADLINE_S,
            )
            errors.seek(0)
            text = errors.read()
        if check is not None:
            assert done.returncode == check, text
        return text

    def conmon(self, *words: str, **more) -> subprocess.Popen[str]:
        """Run a verb below a subreaper that reports the exit status behind --pid-file."""
        pid_file = words[words.index("--pid-file") + 1]
        command = [sys.executable, FAKE_CONMON, pid_file, *self.command(*words)]
        process = subprocess.Popen(command, env={}, text=True, stdout=subprocess.PIPE, **more)
        self._running.append(process)
        return process

    def bundle(self, *args: str, name: str = "bundle", **changes) -> Path:
        """A bundle whose process has these args; `changes` replace top-level keys of its config.json."""
        path = self.base / name
        (path / "rootfs").mkdir(parents=True, exist_ok=True)
        spec = copy.deepcopy(default_spec(rootless=False))
        spec["process"]["args"] = list(args)
        spec["process"]["terminal"] = False
        for key, value in changes.items():
            if isinstance(value, dict) and key != "annotations":
                spec[key].update(value)
            else:
                spec[key] = value
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def state(self, id: str) -> dict:
        return json.loads(self("state", id).stdout)

    def calls(self) -> str:
        """What the fake shims were asked."""
        return (self.root / "calls.log").read_text()

    def left(self) -> list[str]:
        """What lies in the state root, the fake's own log aside."""
        return [name for name in os.listdir(self.root) if name != "calls.log"]

    def close(self) -> None:
        for id in state.list_ids(str(self.root)):
            pid = state.owner_pid(str(self.root / id))
            if pid:
                os.kill(pid, signal.SIGKILL)
        for process in self._running:
            process.kill()
            if not process.stdout.closed:
                process.communicate()


def read(fd: int) -> bytes:
    """Some bytes, or a failure after the deadline."""
    ready, _, _ = select.select([fd], [], [], DEADLINE_S)
    assert ready, "nothing arrived"
    return os.read(fd, 4096)
