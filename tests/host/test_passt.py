"""passt in its jail, beside the profile that its package brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from host.conftest import podman, run

SETTINGS = Path("/etc/bufferzone/config.d/90-host-check.toml")
ADDRESS = "192.0.2.17"


@pytest.fixture
def page(tmp_path):
    """A web page at an address of the host's that is not loopback."""
    (tmp_path / "page").write_text("from the host\n")
    run("ip", "link", "add", "bzcheck", "type", "dummy")
    run("ip", "address", "add", f"{ADDRESS}/24", "dev", "bzcheck")
    run("ip", "link", "set", "bzcheck", "up")
    run("ip", "route", "replace", "default", "via", "192.0.2.1", "dev", "bzcheck")
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", ADDRESS, "--directory", str(tmp_path), "8000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdout is not None
    assert server.stdout.readline()  # it says that it serves
    yield f"http://{ADDRESS}:8000/page"
    server.kill()
    server.communicate()
    run("ip", "link", "del", "bzcheck")


@pytest.fixture
def settings():
    SETTINGS.parent.mkdir(parents=True, exist_ok=True)
    SETTINGS.write_text('host_network = "passt"\n')
    yield
    SETTINGS.unlink()


def test_a_container_reaches_the_outside_through_passt(image, page, settings):
    assert podman("run", "--rm", "--network", "host", image, "wget", "-q", "-O", "-", page) == "from the host"
