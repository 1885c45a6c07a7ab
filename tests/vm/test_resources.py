"""Resources with the real programs: who hears of an out-of-memory kill, what is counted, what is limited."""

from __future__ import annotations

import json
import subprocess

import pytest

from vm.podman import read_until

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

GROW = "x=a; while :; do x=$x$x; done"


def verb(podman, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A verb of the runtime, as Podman calls it."""
    command = [str(podman.program), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, (words, done.stdout, done.stderr)
    return done


def identity(podman, name: str) -> str:
    return str(podman.inspect(name)["Id"])


def test_a_container_that_runs_out_of_memory_is_killed_and_podman_knows_why(podman):
    podman("run", "--name", "hungry", "--memory", "64m", podman.image, "sh", "-c", GROW, status=137)
    state = podman.inspect("hungry")["State"]
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)


def test_a_child_that_runs_out_of_memory_is_told_of_and_the_container_lives_on(podman):
    script = f"({GROW}); echo child $?; exit 3"
    done = podman("run", "--name", "parent", "--memory", "64m", podman.image, "sh", "-c", script, status=3)
    assert done.text == "child 137"
    assert podman.inspect("parent")["State"]["OOMKilled"] is True


def test_a_container_that_is_killed_otherwise_did_not_run_out_of_memory(podman):
    podman("run", "--name", "shot", "--detach", "--memory", "64m", podman.image, "sleep", "1000")
    podman("kill", "--signal", "KILL", "shot")
    podman("wait", "shot")
    assert podman.inspect("shot")["State"]["OOMKilled"] is False


def test_events_tells_of_a_kill_and_ends_with_the_container(podman):
    script = f"read go; ({GROW}); read more"
    words = ("--name", "told", "--interactive", "--detach", "--memory", "64m")
    podman("run", *words, podman.image, "sh", "-c", "mkfifo /go; sh -c '" + script + "' <>/go")
    command = [str(podman.program), "events", "--interval", "1h", identity(podman, "told")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as events:
        first = json.loads(read_until(events.stdout, b"\n"))
        assert first["type"] == "stats"
        podman("exec", "told", "sh", "-c", "echo > /go")
        second = json.loads(read_until(events.stdout, b"\n"))
        assert second == {"type": "oom", "id": identity(podman, "told")}
        podman("kill", "told")
        assert events.wait(30) == 0
