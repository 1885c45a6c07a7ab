"""What goes wrong with what a person asks for: one clear line, and nothing left."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from flow.cli import BZ, SETTINGS, Cli, needs_host

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{tmp_path}/store/images"')
    yield cli
    left = cli.left()
    cli.close()
    assert left == []
    places = tmp_path / "store" / "sandboxes"
    assert not places.exists() or os.listdir(places) == []


def test_without_a_network_an_image_is_one_line(bz):
    words = bz.command("run", "--network", "none", "registry.invalid/x:1", "true", program=BZ)
    done = subprocess.run(
        ["unshare", "--net", *words],
        env={},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 125
    assert done.stderr.splitlines()[-1].startswith("bz: cannot pull registry.invalid/x:1: ")
    assert "Traceback" not in done.stderr


def test_a_script_that_ignores_sigterm_is_killed_when_its_time_is_up(bz):
    script = "trap '' TERM; while :; do sleep 0.1; done"
    bz.bz("run", "-d", "--network", "none", "--name", "deaf", "--", "sh", "-c", script)
    began = time.monotonic()
    assert bz.bz("stop", "-t", "1", "deaf").stdout == "deaf\n"
    assert time.monotonic() - began >= 1
    assert bz.state("deaf")["status"] == "stopped"
    bz.bz("rm", "deaf")


def test_two_of_one_name_are_one_and_a_line(bz):
    bz.bz("run", "-d", "--network", "none", "--name", "one", "--", "sleep", "1000")
    refused = bz.bz("run", "-d", "--network", "none", "--name", "one", "--", "true", check=125)
    assert refused.stderr == "bz: a container with that name exists: one (hint: bz rm one)\n"
    assert bz.bz("exec", "one", "echo", "still").stdout == "still\n"
    bz.bz("rm", "-f", "one")


def test_output_without_end_into_a_pipe_that_closes_ends_it(bz):
    words = bz.command("run", "--network", "none", "--", "yes", program=BZ)
    with subprocess.Popen(words, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(100) != 0
