"""Podman as root with the systemd cgroup manager: the daily verbs."""

from __future__ import annotations

import json

from host.conftest import podman, run


def test_podman_uses_systemd_here():
    info = json.loads(run("podman", "info", "--format", "json"))["host"]
    assert (info["cgroupManager"], info["cgroupVersion"]) == ("systemd", "v2")


def test_a_container_runs_takes_an_exec_and_a_file_and_stops(image, tmp_path):
    podman("run", "-d", "--name", "daily", image, "sh", "-c", "echo begun; exec sleep 1000")
    assert podman("exec", "daily", "cat", "/proc/1/comm") == "sleep"
    (tmp_path / "file").write_text("from the host\n")
    podman("cp", str(tmp_path / "file"), "daily:/file")
    assert podman("exec", "daily", "cat", "/file") == "from the host"
    assert podman("logs", "daily") == "begun"
    assert "sleep" in podman("top", "daily")
    podman("stop", "--time", "1", "daily")
    assert json.loads(podman("inspect", "daily"))[0]["State"]["Status"] == "exited"
    podman("rm", "daily")
