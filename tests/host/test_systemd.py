"""Containers as scopes of the machine's systemd, and of a user's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from host import scopes
from host.conftest import podman, run

QUADLET = Path("/etc/containers/systemd")


def test_a_container_is_a_unit_whose_limits_outlive_a_reload(image):
    scopes.assert_unit_and_limits(image)


def test_systemctl_kill_and_stop_reach_what_runs_in_the_container(image):
    scopes.assert_signals_arrive(image)


def test_systemctl_kill_with_sigkill_is_the_end_of_all_of_it(image):
    scopes.assert_kill_of_all_is_an_end(image)


def test_no_unit_is_left_of_a_container_whose_shim_was_killed(image):
    scopes.assert_killed_shim_leaves_no_unit(image)


def test_an_update_sets_the_units_properties(image):
    unit, cgroup = scopes.make(image, "updated", "--pids-limit", "200")
    id = json.loads(podman("inspect", "updated"))[0]["Id"]
    run("bufferzone", "--systemd-cgroup", "update", "--pids-limit", "100", id)
    assert scopes.systemctl("show", unit, "--property", "TasksMax") == f"TasksMax={256 + 8 * 100}"
    scopes.systemctl("daemon-reload")
    assert (cgroup / "pids.max").read_text().strip() == str(256 + 8 * 100)
    podman("rm", "--force", "--time", "0", "updated")


def test_a_unit_of_the_name_is_in_the_way_in_one_line(image, tmp_path):
    bundle = tmp_path / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    run("bufferzone", "spec", cwd=str(bundle))
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    config["linux"]["cgroupsPath"] = "system.slice:host:clash"
    (bundle / "config.json").write_text(json.dumps(config))
    asleep = ("systemd-run", "--quiet", "--scope", "--unit", "host-clash", "sh", "-c", "echo up; sleep 1000")
    with subprocess.Popen(asleep, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        told = run("sh", "-c", "exec bufferzone --systemd-cgroup run clash 2>&1", status=1, cwd=str(bundle))
        run("systemctl", "stop", "host-clash.scope")
    (line,) = told.splitlines()
    assert "cannot make the scope host-clash.scope" in line
    assert "clash" not in run("bufferzone", "list", "-q").split()


@pytest.mark.skipif(
    not Path("/usr/lib/systemd/system-generators/podman-system-generator").exists(),
    reason="this Podman has no Quadlet",
)
def test_a_quadlet_unit_starts_is_restarted_and_stops(image):
    QUADLET.mkdir(parents=True, exist_ok=True)
    file = QUADLET / "zone.container"
    script = "trap 'exit 0' TERM; while :; do sleep 1; done"  # a service that is killed at last has failed
    file.write_text(
        f'[Container]\nImage={image}\nExec=sh -c "{script}"\nPodmanArgs=--runtime bufferzone\n'
        "Network=none\n[Service]\nTimeoutStartSec=900\n"
    )
    try:
        run("systemctl", "daemon-reload")
        run("systemctl", "start", "zone.service")
        first = run("podman", "inspect", "--format", "{{.State.Pid}}", "systemd-zone")
        assert Path(f"/proc/{first}").exists()
        run("systemctl", "restart", "zone.service")
        assert run("podman", "inspect", "--format", "{{.State.Pid}}", "systemd-zone") != first
        run("systemctl", "stop", "zone.service")
        ended = run("systemctl", "show", "zone.service", "--property", "ActiveState,Result").split()
        assert sorted(ended) == ["ActiveState=inactive", "Result=success"]
        assert "systemd-zone" not in run("podman", "ps", "--all", "--format", "{{.Names}}")
    finally:
        file.unlink()
        run("systemctl", "daemon-reload")


def test_a_service_that_holds_a_container_is_stopped_with_it(image):
    script = "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 1; done"
    podman("create", "--name", "held", "--network", "none", image, "sh", "-c", script)
    options = ("--unit", "host-held", "--property", "TimeoutStopSec=900", "--property", "Type=exec")
    run("systemd-run", "--quiet", *options, "podman", "start", "--attach", "held")
    run("podman", "wait", "--condition", "running", "held")
    scopes.await_log("held", "up")
    id = json.loads(podman("inspect", "held"))[0]["Id"]
    run("systemctl", "stop", "host-held.service")
    assert json.loads(podman("inspect", "held"))[0]["State"]["ExitCode"] == 0
    assert podman("logs", "held").splitlines() == ["up", "told"]
    assert run("systemctl", "show", f"libpod-{id}.scope", "--property", "LoadState") == "LoadState=not-found"
    podman("rm", "held")
    assert id not in run("bufferzone", "list", "--quiet").split()


@pytest.mark.as_user
def test_a_users_container_is_a_unit_of_the_users_manager(image):
    scopes.assert_unit_and_limits(image)


@pytest.mark.as_user
def test_a_users_systemctl_reaches_what_runs_in_the_container(image):
    scopes.assert_signals_arrive(image)
