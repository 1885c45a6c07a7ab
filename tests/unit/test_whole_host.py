"""scripts/whole_host.py: what it says of the checks, and that it leaves nothing behind. Without a machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase name="good" time="2.5"/>
<testcase name="bad" time="1"><failure message="no"/></testcase>
<testcase name="broken" time="1"><error message="no"/></testcase>
<testcase name="missing" time="0"><skipped message="this Podman has no Quadlet"/></testcase>
<testcase name="mine" time="0"><skipped message="for the other user"/></testcase>
</testsuite></testsuites>"""


#: in QEMU's place: answers at the ports as host_runner.py does in the machine, and ends at a reboot
QEMU = f"""#!{sys.executable}
import json, os, sys, threading
sys.path.insert(0, {str(SCRIPTS)!r})
import host_runner

def serve(fd):
    host_runner._say(fd, {{"ready": os.getuid()}})
    for line in os.fdopen(os.dup(fd), "rb"):
        argv = json.loads(line)["argv"]
        if argv[-1] in ("reboot", "crash"):
            print("Rebooting." if argv[-1] == "reboot" else "Kernel panic", file=open(console, "a"))
            os._exit(argv[-1] == "crash")
        host_runner._say(fd, {{"status": host_runner._run(fd, argv, "/")}})

console = [word for word in sys.argv if word.startswith("file:")][0].removeprefix("file:")
open(console, "a").write("\\x1b[!p\\x1b]104\\x07\\x1b[?7h[  OK  ] Started a service.\\n")
fds = [int(word.rpartition("fd=")[2]) for word in sys.argv if word.startswith("socket,")]
threads = [threading.Thread(target=serve, args=(fd,)) for fd in fds]
[thread.start() for thread in threads]
"""


@pytest.fixture
def machine(host, tmp_path, monkeypatch):
    """(the lines of progress, a running Machine)."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(QEMU)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    told: list[str] = []
    disk, console = tmp_path / "disk", tmp_path / "console.log"
    with host.Machine(disk, disk, disk, console, told.append) as running:
        yield told, running


@pytest.fixture
def host(tmp_path):
    described = importlib.util.spec_from_file_location("whole_host", SCRIPTS / "whole_host.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    module.WORK = tmp_path
    return module


def test_a_row_for_each_check_of_the_user_and_what_was_skipped_with_its_reason(host):
    assert host.table("root", REPORT) == [
        ("good", "root", "passed", 2.5),
        ("bad", "root", "FAILED", 1.0),
        ("broken", "root", "FAILED", 1.0),
        ("missing: this Podman has no Quadlet", "root", "skipped", 0.0),
    ]


@pytest.mark.parametrize("report", ["", "cat: no such file", "<testsuites/>"])
def test_checks_without_a_report_have_failed(host, report):
    assert [row[2] for row in host.table("root", report)] == ["FAILED"]


def test_the_work_directory_goes_however_the_run_ends(host, tmp_path):
    signal.signal(signal.SIGUSR2, host._ended)
    with pytest.raises(SystemExit), host._workspace(keep=False):
        os.kill(os.getpid(), signal.SIGUSR2)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes_with_the_next_and_what_another_one_uses_or_kept_stays(host, tmp_path):
    with host._workspace(keep=True) as work:
        pass
    (kept,) = tmp_path.iterdir()
    assert work.name not in kept.name
    left = tmp_path / f"{host.PREFIX}killed"
    left.mkdir()
    (left / "disk.img").write_bytes(b"")
    with host._workspace(keep=False) as other, host._workspace(keep=False) as work:
        assert set(tmp_path.iterdir()) == {kept, other, work}
    assert list(tmp_path.iterdir()) == [kept]


def test_a_machine_that_lacks_something_is_told_so_in_one_line(host, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "PROGRAMS", {"no-such-program": "its-package"})
    with pytest.raises(host.Failed, match="no-such-program is missing; run: apt-get install its-package"):
        host._check()
    monkeypatch.setattr(host, "PROGRAMS", {})
    monkeypatch.setattr(host, "MEMORY_MIB", 1 << 40)
    with pytest.raises(host.Failed, match="MiB of memory are free, the host needs"):
        host._check()


@pytest.mark.parametrize("words", [("lenny",), ()])
def test_a_release_that_is_not_known_is_named_with_those_that_are(words):
    argv = [sys.executable, "-I", str(SCRIPTS / "whole_host.py"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 2
    assert "bookworm" in done.stderr


def test_a_command_runs_in_the_machine_and_its_output_and_status_come_back(machine, capfd):
    told, running = machine
    assert running.ask("root", ["sh", "-c", "echo one; echo two >&2; exit 7"]) == (7, "one\ntwo\n")
    assert running.run("alice", ["echo", "shown"]) == 0
    assert capfd.readouterr().out == "shown\n"
    assert running.ask("root", ["/no/such/program"])[0] == 127
    assert told == ["booting", "the host is up"]


def test_a_machine_answers_again_after_its_reboot(machine):
    told, running = machine
    first = running.ask("alice", ["sh", "-c", "echo $PPID"])
    running.reboot()
    assert running.ask("alice", ["sh", "-c", "echo $PPID"]) != first
    assert told == ["booting", "the host is up", "rebooting", "booting", "the host is up"]


def test_a_machine_that_ended_is_told_with_its_status_and_its_last_words(host, machine):
    _, running = machine
    with pytest.raises(host.Failed) as caught:
        running.run("root", ["crash"])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("no answer while root ran: crash; QEMU ended with status 1; its console ends")
    assert lines[1:] == ["  [  OK  ] Started a service.", "  Kernel panic"]
