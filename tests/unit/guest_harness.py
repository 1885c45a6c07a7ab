"""Drives the real agent over a socketpair: no VM, no mocks. Needs root and a cgroup v2 mount.

`Guest` is the agent and a blocking client in one thread: `call` for one answer, `send` and `result` for many
requests in flight. `bundle` makes a root file system out of Debian's busybox-static.
"""

from __future__ import annotations

import copy
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bufferzone.errors import GuestError
from bufferzone.wire import agent as wire
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import Empty, Message

TIMEOUT_S = 60.0
SOURCE = str(Path(__file__).resolve().parents[2] / "src")
_START = f"import sys; sys.path.insert(0, {SOURCE!r}); from bufferzone.guest.hosted import main; main()"
_NUMBERS = count()
BUSYBOX = "/bin/busybox"


def cgroup2_mount() -> str:
    """Where the unified hierarchy is mounted, or nothing."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2" and os.access(fields[1], os.W_OK):
            return fields[1]
    return ""


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not cgroup2_mount() or not os.path.exists(BUSYBOX),
    reason="needs root, a writable cgroup v2 mount and busybox-static",
)

ALL_CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]

MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777"],
    },
    {
        "destination": "/dev/mqueue",
        "type": "mqueue",
        "source": "mqueue",
        "options": ["nosuid", "noexec", "nodev"],
    },
    {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"],
    },
    {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    },
]


def make_rootfs(path: Path) -> Path:
    """A root file system with busybox and its links."""
    (path / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin/busybox")
    for name in subprocess.run(
        [BUSYBOX, "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        if name != "busybox":
            (path / "bin" / name).symlink_to("busybox")
    for name in ("etc", "tmp", "root", "home"):
        (path / name).mkdir()
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
    return path


def make_spec(rootfs: Path, *args: str) -> dict[str, Any]:
    """A config.json as runc spec would write it."""
    caps = list(ALL_CAPABILITIES)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs)},
        "hostname": "inside",
        "mounts": copy.deepcopy(MOUNTS),
        "linux": {
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network", "cgroup")],
            "maskedPaths": ["/proc/kcore", "/proc/timer_list", "/proc/acpi", "/nowhere"],
            "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/nowhere"],
        },
    }


class Guest:
    """An agent process and a client of it."""

    def __init__(self, cgroup_root: str) -> None:
        self.cgroup_root = cgroup_root
        self._sock, theirs = socket.socketpair()
        with theirs:  # the agent has its own copy, so that its end of file is our close
            fd = theirs.fileno()
            command = [
                sys.executable,
                "-ISBc",
                _START,
                "--fd",
                str(fd),
                "--cgroup-root",
                cgroup_root,
            ]
            self.process = subprocess.Popen(
                command, pass_fds=[fd], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
            )
        self._frames = ttrpc.FrameReader()
        self._answers: dict[int, ttrpc.Response] = {}
        self._next = 1

    def send(self, method: str, request: Message | None = None) -> int:
        """Send a request; `result` of the returned stream is its answer."""
        return self.send_all((method, request or Empty()))[0]

    def send_all(self, *requests: tuple[str, Message]) -> list[int]:
        """Send requests in one write."""
        frames, streams = b"", []
        for method, request in requests:
            envelope = ttrpc.Request(service=wire.SERVICE, method=method, payload=request.encode())
            frames += ttrpc.encode_frame(self._next, ttrpc.REQUEST, envelope.encode())
            streams.append(self._next)
            self._next += 2
        self._sock.sendall(frames)
        return streams

    def answered(self, stream: int) -> bool:
        """Whether the answer is here, without waiting for it."""
        while select.select([self._sock], [], [], 0)[0]:
            self._receive()
        return stream in self._answers

    def result(self, stream: int, reply: type[Message]) -> Any:
        """Wait for the answer; raises the error it carries."""
        deadline = time.monotonic() + TIMEOUT_S
        while stream not in self._answers:
            self._sock.settimeout(max(0.01, deadline - time.monotonic()))
            self._receive()
        response = self._answers.pop(stream)
        if response.status is not None and response.status.code:
            raise ttrpc.error_of(response.status, GuestError)
        return reply.decode(response.payload)

    def call(self, method: str, request: Message | None = None) -> Any:
        return self.result(self.send(method, request), wire.METHODS[method][1])

    def _receive(self) -> None:
        data = self._sock.recv(1 << 20)
        if not data:
            said = self.process.communicate()[1].decode()
            raise EOFError(f"the agent is gone: {said}")
        for frame in self._frames.feed(data):
            self._answers[frame.stream] = ttrpc.Response.decode(frame.payload)

    # -- the methods, by name --

    def create(self, id: str, spec: dict[str, Any], seccomp: bytes = b"") -> int:
        request = wire.CreateRequest(id=id, spec=json.dumps(spec).encode(), seccomp=seccomp)
        return int(self.call("Create", request).pid)

    def start(self, id: str) -> None:
        self.call("Start", wire.ProcessRef(id=id))

    def wait(self, id: str, exec_id: str = "") -> wire.WaitResponse:
        answer: wire.WaitResponse = self.call("Wait", wire.ProcessRef(id=id, exec_id=exec_id))
        return answer

    def exec(
        self,
        id: str,
        exec_id: str,
        *args: str,
        seccomp: bytes = b"",
        outlived: bool = False,
        **process: Any,
    ) -> int:
        process = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], **process}
        request = wire.ProcessRequest(
            id=id,
            exec_id=exec_id,
            process=json.dumps(process).encode(),
            seccomp=seccomp,
            outlived=outlived,
        )
        return int(self.call("Exec", request).pid)

    def signal(self, id: str, number: int, exec_id: str = "", *, all: bool = False) -> None:
        self.call("Signal", wire.SignalRequest(id=id, exec_id=exec_id, signal=number, all=all))

    def delete(self, id: str, exec_id: str = "") -> None:
        self.call("Delete", wire.ProcessRef(id=id, exec_id=exec_id))

    def read(self, id: str, exec_id: str = "", stream: int = wire.STDOUT, limit: int = 0) -> bytes:
        return bytes(
            self.call("Read", wire.ReadRequest(id=id, exec_id=exec_id, stream=stream, limit=limit)).data
        )

    def read_all(self, id: str, exec_id: str = "", stream: int = wire.STDOUT) -> bytes:
        parts = []
        while data := self.read(id, exec_id, stream):
            parts.append(data)
        return b"".join(parts)

    def read_until(self, text: bytes, id: str, exec_id: str = "") -> bytes:
        """Read stdout until `text` has come."""
        seen = b""
        while text not in seen:
            data = self.read(id, exec_id)
            assert data, f"end of file after {seen!r}"
            seen += data
        return seen

    def write(self, data: bytes, id: str, exec_id: str = "") -> None:
        self.call("Write", wire.WriteRequest(id=id, exec_id=exec_id, data=data))

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        self.call("CloseStdin", wire.ProcessRef(id=id, exec_id=exec_id))

    def run(self, spec: dict[str, Any], id: str = "c", seccomp: bytes = b"") -> tuple[int, str, str]:
        """A whole life: (exit status, stdout, stderr)."""
        self.create(id, spec, seccomp)
        try:
            self.start(id)
            out, err = self.read_all(id), self.read_all(id, stream=wire.STDERR)
            status = self.wait(id).exit_status
        finally:
            self.signal_quietly(id)
            self.delete(id)
        return status, out.decode(), err.decode()

    def signal_quietly(self, id: str) -> None:
        """Kill, whatever the state, and wait."""
        try:
            self.signal(id, 9)
        except Exception:
            return
        self.wait(id)

    def close(self) -> str:
        """End the agent; returns what it had to say on stderr."""
        self._sock.close()
        _, said = self.process.communicate(timeout=TIMEOUT_S)
        return said.decode()


@contextmanager
def running_guest() -> Iterator[Guest]:
    """An agent of its own; afterwards it must have had nothing unexpected to say and have left no cgroup."""
    guest = Guest(os.path.join(cgroup2_mount(), f"bufferzone-test-{os.getpid()}-{next(_NUMBERS)}"))
    try:
        yield guest
    finally:
        said = guest.close()
        left = os.listdir(guest.cgroup_root) if os.path.isdir(guest.cgroup_root) else []
        left = [name for name in left if os.path.isdir(os.path.join(guest.cgroup_root, name))]
        if os.path.isdir(guest.cgroup_root):
            os.rmdir(guest.cgroup_root)
    assert said == ""
    assert left == []
    assert guest.process.returncode == 0
