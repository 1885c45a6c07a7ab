"""Podman as the tests use it: the real program, with storage, state and cgroups of its own, bounded in time.

The runtime is the source of this checkout behind a program named `bufferzone`, as scripts/install would write
it, so nothing has to be installed and nothing of the user's is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

from vm.leftovers import mounts_with

ROOT = Path(__file__).resolve().parents[2]
DROP_IN = ROOT / "config" / "containers.conf.d" / "50-bufferzone.conf"
TIMEOUT_S = 180.0
_PROGRAM = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {source!r})
from bufferzone.cli.main import main
sys.exit(main(["--root", {state!r}, *sys.argv[1:]]))
"""


class Done:
    """How a command ended: exit status, output, complaints."""

    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def text(self) -> str:
        """The output without the white space around it."""
        return self.out.decode().strip()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def complaint(self) -> str:
        return self.err.decode().strip()

    def __repr__(self) -> str:
        return f"<exit status {self.status}, output {self.out[-2000:]!r}, complaints {self.err[-2000:]!r}>"


class Podman:
    """`podman --runtime bufferzone` below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.parent = f"/bufferzone-test-{os.getpid()}"
        self.program = directory / "bin" / "bufferzone"
        self.program.parent.mkdir()
        self.program.write_text(_PROGRAM.format(source=str(ROOT / "src"), state=str(self.state)))
        self.program.chmod(0o755)
        (directory / "home").mkdir()
        self.image = ""
        self.before: tuple[str, ...] = ()  # words in front of `podman`
        self.settings = DROP_IN

    def argv(self, *words: object) -> list[str]:
        """The command line; `run` and `create` get what every container of ours has."""
        places = ("root", "runroot", "tmpdir")
        ours = [word for name in places for word in (f"--{name}", str(self.directory / name))]
        ours += ["--network-config-dir", str(self.directory / "networks")]
        ours += ["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", str(self.program)]
        rest = [str(word) for word in words]
        if rest[0] in ("run", "create"):
            rest[1:1] = ["--cgroup-parent", self.parent]
            if not {"--network", "--pod"} & set(rest):
                rest[1:1] = ["--network", "none"]
        return [*self.before, "podman", *ours, *rest]

    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.directory / "home"),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            "CONTAINERS_CONF": str(self.settings),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",  # what Podman 5 says at every call is not the runtime's
        }

    def start(self, *words: object, **more: Any) -> subprocess.Popen[bytes]:
        """The command, running; the caller waits for it."""
        return subprocess.Popen(self.argv(*words), env=self.environment(), **more)

    def any(self, *words: object, input: bytes = b"", timeout_s: float = TIMEOUT_S) -> Done:
        """The command with all of its input and output, whatever its exit status."""
        done = subprocess.run(
            self.argv(*words),
            env=self.environment(),
            input=input,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def __call__(self, *words: object, status: int = 0, **more: Any) -> Done:
        """The same, and the exit status has to be `status`."""
        done = self.any(*words, **more)
        assert done.status == status, f"podman {' '.join(map(str, words))}: {done}"
        return done

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("container", "inspect", name).out)[0]
        return found

    def close(self) -> None:
        """Remove every container and unmount what podman mounted for itself."""
        self.any("rm", "--all", "--force", "--time", "0", timeout_s=120)
        for path in sorted(mounts_with(str(self.directory)), reverse=True):
            subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)
        for hierarchy in _hierarchies():
            for path in (f"{hierarchy}{self.parent}/conmon", f"{hierarchy}{self.parent}"):
                with contextlib.suppress(OSError):
                    os.rmdir(path)  # absent, or a check that failed has told who is in it

    def leftovers(self) -> list[str]:
        """Mounts and cgroups that containers left, one line each: there must be none once they are removed.

        podman itself keeps its storage mounted and one cgroup for all of its conmons.
        """
        here = str(self.directory)
        mounts = [path for path in mounts_with(here) if path != f"{here}/root/overlay"]
        found = [f"mount {path}" for path in mounts]
        for hierarchy in _hierarchies():
            for path in Path(f"{hierarchy}{self.parent}").glob("*/"):
                if path.name != "conmon" or (path / "cgroup.procs").read_text():
                    found.append(f"cgroup {path}")
        return found


def _hierarchies() -> list[str]:
    rows = [line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [left.split()[4] for left, _, right in rows if right.split()[0] in ("cgroup", "cgroup2")]


class Terminal:
    """A command on a real pseudo-terminal, driven as by a person: type, read what shows, resize."""

    def __init__(
        self, argv: list[str], environment: dict[str, str], size: tuple[int, int] = (80, 24)
    ) -> None:
        self.master, slave = os.openpty()
        self.resize(*size)
        self.seen = b""
        self.child = subprocess.Popen(
            argv, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        os.close(self.master)

    def resize(self, width: int, height: int) -> None:
        """Set the size and tell the program, as a terminal emulator does."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))
        if hasattr(self, "child"):
            self.child.send_signal(signal.SIGWINCH)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def until(self, text: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
        """Read until `text` shows; returns everything before it and forgets both."""
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            ready = select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]
            data = _read(self.master) if ready else b""
            assert data, f"{'ended' if ready else 'timed out'} before {text!r}: {self.seen!r}"
            self.seen += data
        before, _, self.seen = self.seen.partition(text)
        return before

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """The exit status; what is still written is read meanwhile."""
        end = time.monotonic() + timeout_s
        while self.child.poll() is None and time.monotonic() < end:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += _read(self.master)
        return self.child.wait(max(0.1, end - time.monotonic()))


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""  # EIO: every slave is closed


def read_until(stream: Any, text: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
    """Read a pipe until `text` shows; returns all that was read."""
    seen, end = b"", time.monotonic() + timeout_s
    while text not in seen:
        ready = select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]
        data = _read(stream.fileno()) if ready else b""
        assert data, f"{'ended' if ready else 'timed out'} before {text!r}: {seen!r}"
        seen += data
    return seen


def remove_tree(directory: Path) -> None:
    """The storage, whose layers may hold files nobody else may read."""
    shutil.rmtree(directory, ignore_errors=True)
