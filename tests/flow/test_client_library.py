"""`client` as a library: in a process with threads, with descriptors of its own, and the real shim."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bufferzone import oci, state
from bufferzone.client import container, create, detach, execution, job, removal
from bufferzone.client.job import Job
from bufferzone.errors import GuestError, HostError
from flow.cli import DEADLINE_S, ROOT, Cli, needs_host, read

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    cli.enter_in_shim()
    yield cli
    cli.close()


def order(bz, *args, id="one", **changes):
    spec = oci.load(str(bz.bundle(*args, name=f"bundle-{id}", **changes)))
    return create.Order(str(bz.root), id, spec, shim=bz.shim)


def pipes(count):
    """Pairs of (read end, write end)."""
    return [os.pipe() for _ in range(count)]


def ended(pid):
    """Wait for the end of a process that is not our child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # and init has reaped it
    read_ready(pidfd)
    os.close(pidfd)


def read_ready(fd):
    import select

    assert select.select([fd], [], [], DEADLINE_S)[0], "it has not ended"


# A library's process: it has a thread, and no wish to be forked. What it prints is checked by the test.
PROGRAM = """
import os, sys, threading
sys.path.insert(0, {source!r})
from bufferzone import oci
from bufferzone.client import create
os.register_at_fork(before=lambda: os._exit(66))  # a fork is what must not be
stop = threading.Event()
threading.Thread(target=stop.wait, daemon=True).start()
os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)  # as careless libraries do
own, theirs = os.pipe()
null = os.open("/dev/null", os.O_RDWR)
order = create.Order({root!r}, "one", oci.load({bundle!r}), shim={shim!r}, pid_file={pid_file!r})
pid = create.run(order, (null, theirs, null))
os.close(theirs)
print(pid, os.read(own, 100).decode(), flush=True)
"""


def test_a_process_with_threads_makes_a_container_and_is_not_forked(bz):
    pid_file = str(bz.base / "pid")
    source = PROGRAM.format(
        source=str(ROOT / "src"),
        root=str(bz.root),
        bundle=str(bz.bundle("greet")),
        shim=bz.shim,
        pid_file=pid_file,
    )
    command = [sys.executable, "-c", textwrap.dedent(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stderr) == (0, "")
    pid, said = done.stdout.split()
    assert said == "up"
    assert (bz.base / "pid").read_text() == pid
    assert bz.state("one")["status"] == "running"
    kept = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert {fd for fd, name in kept.items() if name == "/dev/null"} <= {2}, kept
    bz("kill", "one", "KILL")
    ended(int(pid))


def test_the_waiter_of_a_library_is_an_orphan_and_first_in_its_pid_namespace(bz):
    null = os.open("/dev/null", os.O_RDWR)
    pid = create.create(order(bz, "pause"), (null, null, null))
    os.close(null)
    status = Path(f"/proc/{pid}/status").read_text()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
    assert status.split("NSpid:")[1].splitlines()[0].split()[-1] == "1"
    container.start(str(bz.root / "one"))
    removal.remove(str(bz.root / "one"), "one", force=True, program=bz.shim)
    ended(pid)
    assert bz.left() == []


def test_the_descriptors_it_is_given_are_those_that_the_process_gets(bz):
    (out_read, out), (err_read, err) = pipes(2)
    null = os.open("/dev/null", os.O_RDONLY)
    pid = create.run(order(bz, "greet"), (null, out, err))
    for fd in (out, err, null):
        os.close(fd)
    assert read(out_read) == b"up\n"
    os.kill(state.owner_pid(str(bz.root / "one")), signal.SIGKILL)
    assert read(err_read) == b"bufferzone: one: the shim that ran its VM was killed\n"
    ended(pid)
    assert read(out_read) == b""
    for fd in (out_read, err_read):
        os.close(fd)


@pytest.mark.parametrize("forked", [True, False])
def test_an_error_of_the_shim_comes_back_with_its_class_and_leaves_nothing(bz, forked):
    mount = {"destination": "/tmp", "type": "tmpfs", "source": "x", "options": ["size=nonsense"]}
    refused = order(bz, "pause", mounts=[mount])
    null = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(GuestError) as caught:
        create.create(refused, (null, null, null), forked=forked)
    os.close(null)
    assert "mount" in caught.value.message
    assert "/tmp" in caught.value.message
    assert bz.left() == []


@pytest.mark.parametrize("forked", [True, False])
def test_an_exec_whose_pid_file_cannot_be_written_leaves_no_process(bz, forked):
    null = os.open("/dev/null", os.O_RDWR)
    create.run(order(bz, "pause"), (null, null, null))
    directory = str(bz.root / "one")
    process = {**execution.own_process(directory), "args": ["pause"]}
    with pytest.raises(HostError):
        execution.execute(directory, process, (null,) * 3, pid_file="/proc/none/pid", forked=forked)
    os.close(null)
    assert [row.split()[-1] for row in bz("ps", "one").stdout.splitlines()[1:]] == ["1000"]
    bz("kill", "one", "KILL")


def test_an_attached_process_is_waited_for_beside_other_threads(bz):
    import threading

    found = []
    null = os.open("/dev/null", os.O_RDWR)
    work = order(bz, "end", "5")
    thread = threading.Thread(target=lambda: found.append(create.run_attached(work, (null, null, null))))
    thread.start()
    thread.join(DEADLINE_S)
    os.close(null)
    assert found == [5]
    assert bz.left() == []


def test_a_waiter_that_cannot_be_told_its_job_is_an_error(bz, monkeypatch):
    real = detach.programs.argv

    def broken(package, *rest, **more):
        return ["/bin/false"] if package == "client" else real(package, *rest, **more)

    monkeypatch.setattr(detach.programs, "argv", broken)
    null = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(Exception, match="the waiter died"):
        create.create(order(bz, "pause"), (null, null, null))
    os.close(null)
    assert bz.left() == []


def test_a_job_is_the_same_on_the_other_side(bz):
    spec = oci.load(
        str(bz.bundle("pause", mounts=[{"destination": "/d", "source": "/tmp", "options": ["rbind", "ro"]}]))
    )
    made = job.of_container("/run/x/one", spec, "/sock\udc80et")
    again = Job.from_json(made.to_json())
    assert again.face.volumes == [("/tmp", "/d", True)]
    assert {**vars(again), "face": None} == {**vars(made), "face": None}
    assert again.id == "one"
