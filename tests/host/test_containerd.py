"""The distribution's containerd under systemd, with the shim as a runtime."""

from __future__ import annotations

import pytest

from host.conftest import run

RUNTIME = "io.containerd.bufferzone.v2"


@pytest.fixture(scope="module")
def ctr(archive):
    name, path = archive
    run("systemctl", "start", "containerd.service")
    run("ctr", "images", "import", path)
    yield name if name.count("/") else f"docker.io/library/{name}"
    run("ctr", "images", "rm", name)


def test_a_task_runs_to_its_end(ctr):
    assert run("ctr", "run", "--rm", "--runtime", RUNTIME, ctr, "bz-one", "echo", "answer") == "answer"
    assert run("ctr", "tasks", "ls", "-q") == ""
