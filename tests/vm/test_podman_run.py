"""Containers as Podman starts and ends them: exit statuses, errors, signals, and every verb on the way."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from vm.podman import read_until
from vm.rootless import until

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

#: says `ready`, ends with 7 at SIGTERM, names SIGUSR1, and tells what it reads
SCRIPT = """
trap 'echo term; exit 7' TERM
trap 'echo usr1' USR1
echo ready
while :; do sleep 1000000 & wait $!; done
"""


def start(podman, name: str, *words: object) -> None:
    """Run SCRIPT detached and wait until its traps are set."""
    podman("run", "--detach", "--name", name, *words, podman.image, "sh", "-c", SCRIPT)
    await_log(podman, name, b"ready")


def await_log(podman, name: str, text: bytes) -> None:
    with podman.start("logs", "--follow", name, stdout=subprocess.PIPE) as logs:
        read_until(logs.stdout, text)
        logs.kill()


@pytest.fixture(scope="module")
def running(podman, nothing_left):
    """One container that the tests leave running: they look, or run something beside its process."""
    start(podman, "running")
    return "running"


def test_a_container_answers_from_another_kernel_and_leaves_nothing(podman, nothing_left):
    done = podman("run", "--rm", "--name", "once", podman.image, "uname", "-r")
    assert done.text
    assert done.text != Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert done.err == b""
    assert podman.any("container", "exists", "once").status == 1
    nothing_left.check()


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_the_exit_status_of_an_exec_is_that_of_its_process(podman, running, status):
    podman("exec", running, "sh", "-c", f"exit {status}", status=status)


@pytest.mark.parametrize(("signal", "status"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
def test_an_exec_that_a_signal_ends_has_that_status_plus_128(podman, running, signal, status):
    podman("exec", running, "sh", "-c", f"kill -{signal} $$", status=status)


def test_an_exec_of_a_missing_program_is_127_and_says_so(podman, running):
    done = podman("exec", running, "nosuch", status=127)
    assert (
        "executable file `nosuch` not found" in done.complaint
        or '"nosuch": executable file not found in $PATH' in done.complaint
    )


@pytest.mark.parametrize("path", ["/srv/plain", "/srv"])
def test_an_exec_of_what_cannot_run_is_126_and_says_so(podman, running, path):
    done = podman("exec", running, path, status=126)
    assert "permission denied" in done.complaint.lower()


def test_an_exec_in_a_missing_directory_fails_like_runc(podman, running):
    done = podman.any("exec", "--workdir", "/nosuch", running, "true")
    assert done.status in (126, 127)
    assert "/nosuch" in done.complaint


@pytest.mark.parametrize(
    ("program", "status", "text"),
    [
        ("nosuch", 127, '"nosuch": executable file not found in $PATH'),
        ("/srv/nosuch", 127, "no such file or directory"),
        ("/srv/plain", 126, "permission denied"),
    ],
)
def test_a_run_of_what_cannot_run_says_why_and_leaves_nothing(podman, running, program, status, text):
    done = podman("run", "--rm", podman.image, program, status=status)
    assert text in done.complaint
    assert program in done.complaint
    assert podman("ps", "--all", "--quiet").lines == [podman.inspect(running)["Id"][:12]]


@pytest.mark.parametrize("status", [3, 255])
def test_the_exit_status_passes_through_run_wait_and_inspect(podman, status):
    name = f"ends-{status}"
    podman(
        "run",
        "--name",
        name,
        podman.image,
        "sh",
        "-c",
        f"echo out; echo err >&2; exit {status}",
        status=status,
    )
    assert podman("wait", name).text == str(status)
    # Podman 5 answers before it has cleaned up, and says "stopped" until then
    until(lambda: podman.inspect(name)["State"]["Status"] != "stopped", f"{name} is cleaned up")
    state = podman.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", status, 0)
    assert podman("logs", name).out == b"out\n"
    assert podman("logs", name).err == b"err\n"


def test_inspect_tells_of_a_running_container(podman, running):
    state = podman.inspect(running)["State"]
    assert (state["Status"], state["Running"], state["Paused"]) == ("running", True, False)
    assert Path(f"/proc/{state['Pid']}").is_dir()
    assert podman("ps", "--filter", "status=running", "--format", "{{.Names}}").lines == [running]


def test_the_pid_that_podman_shows_is_in_the_cgroup_of_the_container(podman, running):
    pid = podman.inspect(running)["State"]["Pid"]
    assert podman.parent in Path(f"/proc/{pid}/cgroup").read_text()


def test_top_lists_the_processes_of_the_guest(podman, running):
    default = podman("top", running).text
    assert "sleep 1000000" in default
    assert "bufferzone" not in default  # not the process that stands for the container on the host
    rows = podman("top", running, "pid", "args").lines
    assert rows[0].split() == ["PID", "COMMAND"]
    assert "1" in [row.split()[0] for row in rows]  # Podman 5 lists them in the order of the directory
    assert any("sleep 1000000" in row for row in rows)


def test_top_with_the_options_of_ps_lists_the_processes_of_the_guest(podman, running):
    if int(podman("version", "--format", "{{.Client.Version}}").text.partition(".")[0]) > 4:
        pytest.skip(
            "Podman 5 runs the host's ps, which no runtime can tell of processes that are not the host's"
        )
    rows = podman("top", running, "-o", "pid,args").lines
    assert rows[0].split() == ["PID", "COMMAND"]
    assert any("sleep 1000000" in row for row in rows)


def test_logs_follow_until_the_container_ends_and_stop_runs_the_trap(podman):
    start(podman, "trap")
    podman("kill", "--signal", "USR1", "trap")
    with podman.start("logs", "--follow", "trap", stdout=subprocess.PIPE) as logs:
        read_until(logs.stdout, b"usr1\n")
        assert "trap" in podman("stop", "--time", "30", "trap").text
        assert read_until(logs.stdout, b"term\n")
        assert logs.wait(30) == 0
    assert podman("wait", "trap").text == "7"
    assert podman.inspect("trap")["State"]["ExitCode"] == 7
    assert podman("logs", "trap").out == b"ready\nusr1\nterm\n"


def test_a_stopped_container_starts_again_in_a_new_vm_with_its_files(podman):
    podman(
        "run", "--name", "again", podman.image, "sh", "-c", "cat /srv/kept 2>/dev/null; echo kept > /srv/kept"
    )
    assert podman("start", "--attach", "again").out == b"kept\n"


def test_stop_kills_what_ignores_its_signal_and_stop_signal_is_sent(podman):
    script = (
        "trap 'echo quit; exit 5' QUIT; trap '' TERM; echo ready; while :; do sleep 1000000 & wait $!; done"
    )
    words = ("--detach", "--stop-signal", "TERM", "--name", "stubborn")
    podman("run", *words, podman.image, "sh", "-c", script)
    await_log(podman, "stubborn", b"ready")
    done = podman("stop", "--time", "1", "stubborn")
    assert "resorting to SIGKILL" in done.complaint
    assert podman("wait", "stubborn").text == "137"
    podman("start", "stubborn")
    await_log(podman, "stubborn", b"ready\nready")
    podman("kill", "--signal", "QUIT", "stubborn")
    assert podman("wait", "stubborn").text == "5"


def test_kill_ends_it_as_the_signal_would(podman):
    start(podman, "killed")
    podman("kill", "killed")
    assert podman("wait", "killed").text == "137"
    done = podman.any("kill", "killed")
    assert done.status != 0
    assert "can only kill running containers" in done.complaint


def test_pause_stops_every_process_and_unpause_lets_them_go_on(podman, running):
    podman("exec", "--detach", running, "sh", "-c", "while :; do echo tick; usleep 20000; done > /srv/ticks")
    size = ("exec", running, "sh", "-c", "while [ ! -s /srv/ticks ]; do :; done; wc -c < /srv/ticks")
    podman(*size)
    podman("pause", running)
    try:
        assert podman.inspect(running)["State"]["Status"] == "paused"
        refused = podman.any("exec", running, "true")
        assert refused.status != 0
        assert "container state improper" in refused.complaint  # podman's own words
    finally:
        podman("unpause", running)
    assert podman.inspect(running)["State"]["Status"] == "running"
    before = int(podman(*size).text)
    more = f"until [ $(wc -c < /srv/ticks) -gt {before} ]; do :; done"
    podman("exec", running, "sh", "-c", more)


INIT = """#!/bin/sh
[ "$1" = -- ] && shift
"$@" &
trap 'kill -TERM $!; wait $!; exit $?' TERM
wait $!
"""


def test_the_init_that_podman_puts_in_front_runs_first_and_gets_the_signals(podman):
    init = podman.directory / "init"  # catatonit's place: any program that runs `init -- COMMAND`
    init.write_text(INIT)
    init.chmod(0o755)
    words = ("--detach", "--init", "--init-path", init, "--name", "init")
    podman("run", *words, podman.image, "sleep", "1000000")
    rows = podman(
        "exec", "init", "sh", "-c", "until ps -o pid,args | grep sleep; do :; done; ps -o pid,args"
    ).lines
    assert any(row.split()[0] == "1" and "init -- sleep 1000000" in row for row in rows[1:])
    podman("stop", "--time", "30", "init")
    assert podman("wait", "init").text == "143"


def test_a_healthy_container_passes_its_check(podman, running):
    podman("run", "--detach", "--name", "healthy", "--health-cmd", "test -e /srv/plain", "--health-interval",
           "disable", podman.image, "sleep", "1000000")  # fmt: skip
    podman("healthcheck", "run", "healthy")
    podman("exec", "healthy", "rm", "/srv/plain")
    assert podman.any("healthcheck", "run", "healthy").status == 1
    podman("rm", "--force", "--time", "0", "healthy")


def test_rm_force_ends_a_running_container(podman):
    start(podman, "removed")
    podman("rm", "--force", "--time", "0", "removed")
    assert podman.any("container", "exists", "removed").status == 1


def test_events_tell_the_whole_life(podman):
    podman("run", "--rm", "--name", "life", podman.image, "true")
    words = ("events", "--stream=false", "--filter", "container=life", "--format", "json")
    names = [json.loads(line)["Status"] for line in podman(*words).lines]
    assert [name for name in names if name in ("create", "start", "died", "remove")] == [
        "create",
        "start",
        "died",
        "remove",
    ]
