"""The distribution's Docker, with bufferzone as one of its runtimes by path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host.conftest import run

SETTINGS = Path("/etc/docker/daemon.json")


@pytest.fixture(scope="module")
def docker(archive):
    name, path = archive
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text(json.dumps({"runtimes": {"bufferzone": {"path": "/usr/local/bin/bufferzone"}}}))
    run("systemctl", "reset-failed", "docker.service")
    run("systemctl", "restart", "docker.service")
    run("docker", "load", "--quiet", "--input", path)
    yield name
    run("systemctl", "stop", "docker.service", "docker.socket")
    SETTINGS.unlink()


def test_a_container_answers_and_its_status_is_told(docker):
    assert run("docker", "run", "--rm", "--runtime", "bufferzone", docker, "echo", "answer") == "answer"
    run("docker", "run", "--rm", "--runtime", "bufferzone", docker, "sh", "-c", "exit 7", status=7)


def test_a_container_can_be_entered_and_stopped(docker):
    run("docker", "run", "-d", "--name", "one", "--runtime", "bufferzone", docker, "sleep", "1000")
    assert run("docker", "exec", "one", "cat", "/proc/1/comm") == "sleep"
    run("docker", "stop", "--time", "1", "one")
    run("docker", "rm", "one")
