"""A reboot of the host under running containers: they are told as ended, and can be started again."""

from __future__ import annotations

import json
import os

import pytest

from host.conftest import podman, run

NAME = "over-a-reboot"


def assert_running(image: str) -> None:
    podman("run", "-d", "--name", NAME, "--network", "none", image, "sleep", "100000")
    podman("exec", NAME, "sh", "-c", "echo kept >/kept && sync")
    assert json.loads(podman("inspect", NAME))[0]["Id"] in run("bufferzone", "list", "--quiet").split()


def assert_ended_and_can_start(image: str) -> None:
    assert run("bufferzone", "list", "--quiet") == ""
    assert NAME not in run("bz", "ps")
    found = json.loads(podman("inspect", NAME))[0]
    assert found["State"]["Status"] != "running"
    told = run("sh", "-c", f"exec bufferzone state {found['Id']} 2>&1", status=1)
    assert f'container "{found["Id"]}" does not exist' in told
    podman("start", NAME)
    assert podman("exec", NAME, "cat", "/kept") == "kept"
    state = json.loads(run("bufferzone", "state", found["Id"]))
    assert state["status"] == "running"
    podman("rm", "--force", "--time", "0", NAME)
    assert run("bufferzone", "list", "--quiet") == ""
    if os.geteuid() == 0:  # whose template quickstart has made
        assert state["annotations"]["bufferzone.start"] == "warm"


@pytest.mark.stage("before")
def test_a_container_runs_when_the_host_goes_down(lasting_image):
    assert_running(lasting_image)


@pytest.mark.stage("before")
@pytest.mark.as_user
def test_a_users_container_runs_when_the_host_goes_down(lasting_image):
    assert_running(lasting_image)


@pytest.mark.stage("after")
def test_a_container_of_the_boot_before_has_ended_and_can_be_started_again(image):
    assert_ended_and_can_start(image)


@pytest.mark.stage("after")
@pytest.mark.as_user
def test_a_users_container_of_the_boot_before_has_ended_and_can_be_started_again(image):
    assert_ended_and_can_start(image)
