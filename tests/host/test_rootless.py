"""Podman of an ordinary user who has a systemd session."""

from __future__ import annotations

import json

import pytest

from host.conftest import podman, run

pytestmark = pytest.mark.as_user


def test_the_user_has_a_manager_of_its_own():
    state = run("systemctl", "--user", "show", "--property", "SystemState", "--value")
    assert state in ("running", "degraded")  # `is-system-running` ends with 1 for the second
    info = json.loads(run("podman", "info", "--format", "json"))["host"]
    assert (info["cgroupManager"], info["security"]["rootless"]) == ("systemd", True)


def test_a_container_of_an_ordinary_user_answers_and_can_be_entered(image):
    podman("run", "-d", "--name", "mine", "--network", "none", image, "sleep", "1000")
    assert podman("exec", "mine", "id", "-u") == "0"
    podman("rm", "--force", "--time", "0", "mine")
