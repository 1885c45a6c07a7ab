"""Limits on cgroup v2, below what systemd manages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host.conftest import podman

ROOT = Path("/sys/fs/cgroup")


@pytest.fixture
def limited(image):
    podman(
        "run", "-d", "--name", "limited", "--memory", "300m", "--pids-limit", "200", image, "sleep", "1000"
    )
    yield json.loads(podman("inspect", "limited"))[0]
    podman("rm", "--force", "--time", "0", "limited")


def _cgroup(pid: int) -> Path:
    line = Path(f"/proc/{pid}/cgroup").read_text().strip()
    assert line.startswith("0::"), f"not the unified hierarchy: {line}"
    return ROOT / line[3:].lstrip("/")


def test_a_limit_holds_in_the_guest_and_bounds_the_host(limited):
    cgroup = _cgroup(limited["State"]["Pid"])
    assert "libpod-" in str(cgroup)
    assert int((cgroup / "memory.max").read_text()) >= 300 << 20
    assert (cgroup / "pids.max").read_text().strip() != "max"
    seen = podman("exec", "limited", "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max").split()
    assert seen == [str(300 << 20), "200"]


def test_nothing_of_a_removed_container_stays_in_the_hierarchy(image):
    podman("run", "-d", "--name", "gone", image, "sleep", "1000")
    cgroup = _cgroup(json.loads(podman("inspect", "gone"))[0]["State"]["Pid"])
    assert cgroup.is_dir()
    podman("rm", "--force", "--time", "0", "gone")
    assert not cgroup.exists()
