"""containerd's side of a shim: starts the real one as containerd does, and asks it as containerd does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bufferzone.errors import BufferzoneError
from bufferzone.wire import sandbox, shim, task, ttrpc
from flow.cli import DEADLINE_S, ROOT, Cli

PROGRAM = [sys.executable, "-ISXutf8", str(ROOT / "src/bufferzone/shim/__main__.py")]
METHODS = {
    sandbox.SERVICE: sandbox.METHODS,
    task.SERVICE: task.METHODS,
    task.SERVICE_V3: task.METHODS,
    shim.SERVICE: shim.METHODS,
}


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    cli.root = Path("/run/bufferzone-containerd") / f"bz-flow-{os.getpid()}"
    yield cli
    cli.close()
    shutil.rmtree(cli.root, ignore_errors=True)


class Shim:
    """A shim that was started for `id` in `bundle`; its caller has a connection to it."""

    def __init__(self, cli: Cli, id: str, bundle: Path) -> None:
        self.cli, self.id, self.bundle = cli, id, bundle
        program = [*PROGRAM[:2], cli.shim or PROGRAM[2]]
        self.words = [*cli.command(program="")[:3], *program]
        self.words += ["-namespace", cli.root.name, "-address", str(cli.base)]
        done = self.run("start", id)
        self.address = done.stdout.decode().removeprefix("unix://")
        self._sock = self.connect()

    def run(self, action: str, id: str) -> subprocess.CompletedProcess[bytes]:
        """What containerd does for it or one of a pod's containers."""
        bundle = self.bundle if id == self.id else self.cli.base / id
        command = [*self.words, "-id", id, "-bundle", str(bundle), action]
        return subprocess.run(
            command, input=b"", capture_output=True, cwd=bundle, timeout=DEADLINE_S, check=True
        )

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        sock.connect(self.address)
        return sock

    def ask(self, method, request, service=task.SERVICE, sock=None):
        """The answer; raises what the shim says is wrong."""
        envelope = ttrpc.Request(
            service=service,
            method=method,
            payload=request.encode(),
            metadata=[ttrpc.KeyValue(key=ttrpc.CONTAINERD_NAMESPACE, value="k8s.io")],
        )
        sock = sock or self._sock
        sock.sendall(ttrpc.encode_frame(1, ttrpc.REQUEST, envelope.encode()))
        frames, reader = [], ttrpc.FrameReader()
        while not frames:
            data = sock.recv(1 << 16)
            assert data, "the shim hung up"
            frames = reader.feed(data)
        response = ttrpc.Response.decode(frames[0].payload)
        if response.status is not None and response.status.code:
            raise ttrpc.error_of(response.status, BufferzoneError)
        return METHODS[service][method][1].decode(response.payload)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def await_gone(self) -> None:
        """Wait for the end of the shim, with which the connection ends."""
        assert self._sock.recv(1) == b""
