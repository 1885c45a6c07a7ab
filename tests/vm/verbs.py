"""The OCI command line as a caller uses it, for tests with real VMs: bundles, verbs, the pid that is reaped.

Every wait has a deadline. `Runtime` runs the commands of this checkout.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vm.leftovers import name_of

PROGRAM = str(Path(__file__).parents[2] / "bin" / "bufferzone")
APPLETS = (
    "cat",
    "dd",
    "echo",
    "grep",
    "head",
    "id",
    "kill",
    "ls",
    "mount",
    "printf",
    "ps",
    "sh",
    "sleep",
    "true",
)
ALL_CAPABILITIES = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
    "CAP_SYS_BOOT",
    "CAP_CHOWN",
]
BOOT_S = 120.0  # a create on a busy machine


@dataclass(frozen=True)
class Result:
    """How a verb ended."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of its error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"expected one line: {self.err!r}"
        return lines[0]


def bundle(directory: Path, command: str = "exec sleep 1000", **changes: Any) -> Path:
    """A bundle with busybox and `sh -c command`; `changes` replace top-level keys of config.json."""
    bin_directory = directory / "rootfs" / "bin"
    bin_directory.mkdir(parents=True)
    for name in ("proc", "dev", "sys", "tmp"):
        (directory / "rootfs" / name).mkdir()
    program = shutil.which("busybox")
    assert program, "busybox is not installed: apt-get install busybox-static"
    shutil.copy(program, bin_directory / "busybox")
    for name in APPLETS:
        (bin_directory / name).symlink_to("busybox")
    write_config(directory, {**config(command), **changes})
    return directory


def config(command: str) -> dict[str, Any]:
    """A config.json that runs `command` as root with a few capabilities."""
    kinds = ("pid", "ipc", "uts", "mount", "network")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", command],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }


def privileged(command: str) -> dict[str, Any]:
    """As `config`, with what a privileged container has: capabilities, and /proc as it is."""
    value = config(command)
    value["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), ALL_CAPABILITIES)
    return value


def write_config(directory: Path, value: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(value))


@dataclass
class Container:
    """A created container: the pid that stands for it, and the read ends of its output."""

    id: str
    pid: int
    out: int
    err: int
    seen: dict[int, bytes] = field(default_factory=dict)

    def expect(self, text: str, timeout_s: float = 120.0) -> None:
        """Read its output until `text` came."""
        self._read(self.out, timeout_s, lambda data: text.encode() in data, text)

    def errors(self, timeout_s: float = 120.0) -> str:
        """Everything on stderr, up to its end."""
        return self._read(self.err, timeout_s, lambda _: False, "")

    def output(self, timeout_s: float = 120.0) -> str:
        """Everything on stdout, up to its end."""
        return self._read(self.out, timeout_s, lambda _: False, "")

    def _read(self, fd: int, timeout_s: float, enough: Any, wanted: str) -> str:
        deadline = time.monotonic() + timeout_s
        data = self.seen.get(fd, b"")
        while not enough(data):
            assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], f"no more: {data!r}"
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                assert not wanted, f"ended without {wanted!r}: {data!r}"
                break
            data += chunk
            self.seen[fd] = data
        return data.decode(errors="replace")

    def wait(self, timeout_s: float = 120.0) -> int:
        """Reap the pid, as conmon does; its exit status."""
        await_end(self.pid, timeout_s)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self.out)
        os.close(self.err)


class Runtime:
    """`bufferzone --root ROOT`; `before` are words in front of it (`private.py` and its flags)."""

    def __init__(self, root: Path, before: tuple[str, ...] = ()) -> None:
        self.root = root
        self.before = before
        self._open: list[Container] = []

    def command(self, *words: str) -> list[str]:
        return [*self.before, PROGRAM, "--root", str(self.root), *words]

    def verb(self, *words: str, timeout_s: float = BOOT_S) -> Result:
        """Run a verb to its end. Not for `create`: what it starts keeps its output open."""
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *words: str, timeout_s: float = BOOT_S) -> Result:
        result = self.verb(*words, timeout_s=timeout_s)
        assert result.status == 0, result.err
        return result

    def begin_create(
        self, id: str, directory: Path, *flags: str, stdin: int = subprocess.DEVNULL
    ) -> tuple[subprocess.Popen[bytes], Container]:
        """Start `create` and do not wait; the container's `pid` is 0."""
        out, out_there = os.pipe()
        err, err_there = os.pipe()
        words = self.command("create", "-b", str(directory), *flags, id)
        verb = subprocess.Popen(words, stdin=stdin, stdout=out_there, stderr=err_there)
        os.close(out_there)
        os.close(err_there)
        container = Container(id, 0, out, err)
        self._open.append(container)
        return verb, container

    def try_create(self, id: str, directory: Path, *flags: str, timeout_s: float = BOOT_S) -> Result:
        """`create` that is expected to fail."""
        verb, container = self.begin_create(id, directory, *flags)
        status = verb.wait(timeout_s)
        return Result(status, "", container.errors() if status else "")

    def create(self, id: str, directory: Path, *flags: str) -> Container:
        pid_file = directory.parent / f"{id}.pid"
        verb, container = self.begin_create(id, directory, "--pid-file", str(pid_file), *flags)
        status = verb.wait(BOOT_S)
        assert status == 0, container.errors()
        container.pid = int(pid_file.read_text())
        return container

    def run(self, id: str, directory: Path) -> Container:
        """create and start."""
        container = self.create(id, directory)
        self.ok("start", id)
        return container

    def state(self, id: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.ok("state", id).out)
        return value

    def status(self, id: str) -> str:
        return str(self.state(id)["status"])

    def await_status(self, id: str, wanted: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """Poll `state`, as buildah does."""
        deadline = time.monotonic() + timeout_s
        while (found := self.state(id))["status"] != wanted:
            assert time.monotonic() < deadline, f"{id} is {found['status']} and not {wanted}"
        return found

    def shim_pid(self, id: str) -> int:
        return int((self.root / id / "owner").read_text().split()[0])

    def helper_pids(self, id: str) -> dict[str, int]:
        """The pids of shim, virtiofsd and qemu, from the record for clean-ups."""
        found = {"shim": self.shim_pid(id)}
        for pid, _ in json.loads((self.root / id / "leftovers.json").read_text())["processes"]:
            found["qemu" if name_of(pid).startswith("qemu") else name_of(pid)] = pid
        return found

    def close(self) -> None:
        """Delete what a failed test left, and close the pipes."""
        for directory in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            if directory.is_dir():
                self.verb("delete", "--force", directory.name)
        for container in self._open:
            container.close()
        self._open.clear()


def await_end(pid: int, timeout_s: float = 120.0) -> None:
    """Wait until the process ended; reaps nothing."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], timeout_s)[0], f"process {pid} does not end"
    finally:
        os.close(fd)


def kill(pid: int) -> None:
    """SIGKILL, and wait for the end."""
    os.kill(pid, signal.SIGKILL)
    await_end(pid)


def await_true(condition: Any, what: str, timeout_s: float = 120.0) -> Any:
    """Ask again and again, where there is no event to wait for: a file of another process."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        select.select([], [], [], 0.01)
    return value


def listing(directory: Path) -> list[str]:
    """Every path below `directory`, for comparing before and after."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
