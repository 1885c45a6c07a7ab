"""`bz run` in real VMs: its kernel is not ours, limits hold, ports lead in, nothing is left."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from vm.verbs import await_true
from vm.warm import Warm

pytestmark = pytest.mark.vm

SERVER = """
import socket
server = socket.create_server(("", 8080))
peer, _ = server.accept()
peer.sendall(b"from inside")
peer.close()
"""


@pytest.fixture
def warm(tmp_path: Path, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path / "warm", guest_image, templates=False)
    yield warm
    for id in os.listdir(warm.runtime.root):
        warm.bz("rm", "-f", id)
    warm.runtime.close()


def left(warm: Warm) -> list[str]:
    """Containers and their places on the disk."""
    return [path.name for path in warm.runtime.root.iterdir() if path.is_dir()] + os.listdir(
        warm.store.parent / "sandboxes"
    )


def test_a_command_runs_on_a_kernel_of_its_own_within_its_limits(warm: Warm):
    script = (
        "cat /proc/sys/kernel/random/boot_id /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; touch /usr/x"
    )
    limits = ("--memory", "64m", "--pids-limit", "20", "--cpus", "0.5")
    done = warm.bz("run", "--network", "none", *limits, "--", "sh", "-c", script)
    assert done.status == 0, done.err
    boot_id, memory, pids = done.out.split()
    assert boot_id != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (memory, pids) == (str(64 << 20), "20")
    assert left(warm) == []


def test_a_published_port_leads_to_the_command(warm: Warm):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    started = warm.bz("run", "-d", "-p", f"127.0.0.1:{port}:8080", "--", "python3", "-c", SERVER)
    assert started.status == 0, started.err
    assert await_true(lambda: answer(port), "an answer") == b"from inside"
    assert warm.bz("rm", "-f", started.out.strip()).status == 0
    assert left(warm) == []


def test_behind_an_egress_policy_a_call_is_refused_at_once_and_a_caller_is_answered(warm: Warm):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = ("--name", "held", "--egress", "tcp:192.0.2.7:443", "-p", f"127.0.0.1:{port}:8080")
    started = warm.bz("run", "-d", *words, "--", "python3", "-c", f"{SERVER}\nserver.accept()")
    assert started.status == 0, started.err
    assert await_true(lambda: answer(port), "an answer") == b"from inside"
    call = "import socket; socket.create_connection(('198.51.100.1', 80), 100)"
    called = warm.bz("exec", "held", "python3", "-c", call)
    assert "ConnectionRefusedError" in called.err
    (row,) = json.loads(warm.bz("ps", "--json").out)
    assert int(row["egress_denied"]) > 0
    assert warm.bz("rm", "-f", "held").status == 0
    assert left(warm) == []


def answer(port: int) -> bytes:
    """What comes from there; passt accepts before the command does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
            return peer.recv(100)
    except OSError:
        return b""
