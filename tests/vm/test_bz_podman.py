"""What Podman started is seen, joined and read by bz: the same sandbox at three faces."""

from __future__ import annotations

import json
import subprocess

import pytest

from vm.podman import ROOT, Podman

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]


def bz(podman: Podman, *words: str) -> str:
    command = [str(ROOT / "bin" / "bz"), "--root", str(podman.state), *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def test_a_container_of_podmans_is_seen_joined_and_read_by_bz(podman: Podman):
    script = "echo out; echo err >&2; exec sleep 600"
    podman("run", "-d", "--log-driver", "k8s-file", "--name", "seen", podman.image, "sh", "-c", script)
    try:
        id = podman.inspect("seen")["Id"]
        (row,) = (row for row in json.loads(bz(podman, "ps", "--json")) if row["id"] == id)
        assert row["status"] == "running"
        kernel = podman("exec", "seen", "uname", "-r").text
        assert bz(podman, "exec", id[:12], "uname", "-r").strip() == kernel
        assert bz(podman, "logs", id[:12]) == "out\n"
        assert "sleep 600" in bz(podman, "top", id[:12])
        assert json.loads(bz(podman, "inspect", id))[0]["id"] == id
        (used,) = json.loads(bz(podman, "stats", "--json", id))
        assert used["cpu_percent"] is not None
    finally:
        podman("rm", "--force", "--time", "0", "seen")
