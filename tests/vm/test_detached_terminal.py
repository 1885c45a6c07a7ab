"""A detached process with a terminal, as containerd's runc shim starts it: it reads the verb's output to its
end.
"""

from __future__ import annotations

import array
import os
import socket
import subprocess
from pathlib import Path

import pytest

from vm.podman import read_until
from vm.verbs import BOOT_S, Runtime, bundle, config

pytestmark = pytest.mark.vm

#: where a container has its terminal
TERMINALS = [
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["newinstance", "ptmxmode=0666"],
    },
]


@pytest.fixture
def runtime(tmp_path, guest_image):
    runtime = Runtime(tmp_path / "root")
    yield runtime
    runtime.close()


def receive_master(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        _, rights, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(16))
    return array.array("i", rights[0][2])[0]


def test_what_reads_the_verbs_output_to_its_end_goes_on_while_the_container_lives(
    runtime: Runtime, tmp_path: Path
) -> None:
    value = config("echo up; read line; echo got $line")
    mounts = [*value["mounts"], *TERMINALS]
    made = bundle(tmp_path / "b", process={**value["process"], "terminal": True}, mounts=mounts)
    console = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(console))
        listener.listen(1)
        listener.settimeout(BOOT_S)
        words = ("create", "--bundle", str(made), "--console-socket", str(console), "c")
        verb = subprocess.Popen(
            runtime.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        master = receive_master(listener)
        said, _ = verb.communicate(timeout=BOOT_S)
    assert (verb.returncode, said) == (0, b"")
    assert runtime.status("c") == "created"
    runtime.ok("start", "c")
    with os.fdopen(master, "r+b", buffering=0) as terminal:
        read_until(terminal, b"up")
        terminal.write(b"you\n")
        read_until(terminal, b"got you")
    runtime.await_status("c", "stopped")
    runtime.ok("delete", "c")
