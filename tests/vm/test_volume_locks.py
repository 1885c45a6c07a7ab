"""Locks of files on a volume hold between VMs and against the host, and who has one sees what was written."""

from __future__ import annotations

import fcntl
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vm.podman import read_until
from vm.test_podman_volumes import PYTHON

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

LONG_S = 900.0
#: these say `ready` and wait for a line, so that they run at once however long a start takes, and pause now
#: and then, or the fast ones would be done before the slow ones come in between: those try every 0.1 s
BEGIN = """
import sys, time
path, times = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
def turns():
    for turn in range(times):
        if turn % max(1, min(100, times // 10)) == 0:
            time.sleep(0.1)
        yield turn
"""
#: PATH TIMES HOW: adds one TIMES times, under a lock; says `done` and how often others had come between
COUNT = """
import fcntl, os
lock, met, last = getattr(fcntl, sys.argv[3]), 0, None
for _ in turns():
    fd = os.open(path, os.O_RDWR)
    lock(fd, fcntl.LOCK_EX)
    value = int(os.pread(fd, 100, 0)) + 1
    os.pwrite(fd, b"%d" % value, 0)
    os.close(fd)
    met += last not in (None, value - 1)
    last = value
print("done", met)
"""
#: PATH TIMES: adds one TIMES times, in a transaction each; says how often, and what else the database says.
#: Nothing is flushed to the disk: that is for a host that loses power, and took most of the test's time
ADD = """
import sqlite3, sys
path, times = sys.argv[1], int(sys.argv[2])
base = sqlite3.connect(path, timeout=600, isolation_level=None)
count = 0
try:
    base.execute("pragma synchronous = off")
    for count in range(times):
        base.execute("begin immediate")
        base.execute("update t set v = v + 1")
        base.execute("commit")
    print(times)
except sqlite3.OperationalError as error:
    print(count, error)
"""
#: PATH TIMES: the same beside others who begin at the same moment; says what COUNT says
ADD_TOGETHER = """
import sqlite3
base = sqlite3.connect(path, timeout=600, isolation_level=None)
base.execute("pragma synchronous = off")
met, last = 0, None
for _ in turns():
    base.execute("begin immediate")
    base.execute("update t set v = v + 1")
    (value,) = base.execute("select v from t").fetchone()
    base.execute("commit")
    met += last not in (None, value - 1)
    last = value
print("done", met)
"""
#: `ofd`: a lock of the open file description, see fcntl(2)
LOCK = """
import errno, fcntl, struct, sys
def lock(file, how, wait):
    if how == "ofd":
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        fcntl.fcntl(file, command, struct.pack("=hhxxxxqqixxxx", fcntl.F_WRLCK, 0, 0, 0, 0))
    else:
        getattr(fcntl, how)(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
"""
#: PATH HOW: holds a lock until its input ends
HOLD = f"""{LOCK}
file = open(sys.argv[1], "r+")
lock(file, sys.argv[2], True)
print("held", flush=True)
sys.stdin.read()
"""
#: PATH HOW: tries for a lock, says got it or the errno's name
TRY = f"""{LOCK}
file = open(sys.argv[1], "r+")
try:
    lock(file, sys.argv[2], False)
    print("got it")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
#: how a container locks -> what of the host's is in its way
ON_HOST = {"flock": "flock", "lockf": "lockf", "ofd": "lockf"}


@pytest.fixture(scope="module")
def volume(podman):
    directory: Path = podman.directory / "locked"
    directory.mkdir()
    return directory


@pytest.fixture(scope="module")
def boxes(podman, nothing_left, volume):
    """Two containers, so two VMs, with the volume at /l."""
    names = ("lock-one", "lock-two")
    for name in names:
        words = ["--volume", f"{volume}:/l", "--volume", "/usr:/host:ro", "--env", "PYTHONHOME=/host"]
        podman("run", "--detach", "--name", name, *words, podman.image, "sleep", "1000000")
    yield names
    for name in names:
        podman("rm", "--force", "--time", "0", name)


@pytest.fixture
def file(volume):
    path = volume / "f"
    path.write_text("text")
    return path


def run(podman, box: str, program: str, *words: object, start: bool = False, **more):
    words = ("exec", *(["--interactive"] if start else []), box, *PYTHON, program, *words)
    if start:
        return podman.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more)
    return podman(*words, **more).text


def on_host(program: str, *words: object) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-ISc", program, *map(str, words)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def is_free(path: Path, how: str) -> bool:
    with open(path, "r+") as opened:
        try:
            getattr(fcntl, ON_HOST[how])(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def becomes_free(path: Path, how: str) -> bool:
    """A lock of a process that has ended is given back in a moment: who waits for it gets it."""
    program = f"import fcntl, sys; fcntl.{ON_HOST[how]}(open(sys.argv[1], 'r+'), fcntl.LOCK_EX)"
    return subprocess.run([sys.executable, "-ISc", program, path], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("how", ON_HOST)
def test_what_one_container_has_locked_neither_the_host_nor_another_gets(podman, boxes, file, how):
    with run(podman, boxes[0], HOLD, "/l/f", how, start=True) as holder:
        read_until(holder.stdout, b"held")
        assert not is_free(file, how)
        assert run(podman, boxes[1], TRY, "/l/f", how) == "EAGAIN"
        assert run(podman, boxes[0], TRY, "/l/f", how) == "EAGAIN"
        holder.stdin.close()
        assert holder.wait(60) == 0
    assert becomes_free(file, how)
    assert run(podman, boxes[1], TRY, "/l/f", how) == "got it"


@pytest.mark.parametrize("how", ON_HOST)
def test_what_the_host_has_locked_no_container_gets_and_who_waits_gets_it_then(podman, boxes, file, how):
    with open(file, "r+") as opened:
        getattr(fcntl, ON_HOST[how])(opened, fcntl.LOCK_EX)
        assert run(podman, boxes[0], TRY, "/l/f", how) == "EAGAIN"
        with run(podman, boxes[0], HOLD, "/l/f", how, start=True) as waiting:
            # while it waits, the share serves everybody, the lock's file included
            assert run(podman, boxes[0], "print(open('/l/f').read())") == "text"
            assert waiting.poll() is None
            fcntl.flock(opened, fcntl.LOCK_UN)
            fcntl.lockf(opened, fcntl.LOCK_UN)
            read_until(waiting.stdout, b"held")
            waiting.stdin.close()
            assert waiting.wait(60) == 0


def test_a_killed_vm_lets_go_of_its_locks(podman, boxes, volume, file):
    words = ["--volume", f"{volume}:/l", "--volume", "/usr:/host:ro", "--env", "PYTHONHOME=/host"]
    words += ["--interactive", "--name", "lock-killed", podman.image, *PYTHON, HOLD, "/l/f", "flock"]
    with podman.start("run", *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        read_until(holder.stdout, b"held")
        assert not is_free(file, "flock")
        podman("kill", "lock-killed")
        holder.wait(60)
    assert becomes_free(file, "flock")
    podman("rm", "--force", "--time", "0", "lock-killed")


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_containers_of_one_vm_lock_against_each_other_the_host_and_another_vm(
    podman, boxes, volume, file, how
):
    sibling = f"lock-sibling-{how}"
    words = ["--volume", f"{file}:/file", "--volume", "/usr:/host:ro", "--env", "PYTHONHOME=/host"]
    words += ["--network", f"container:{boxes[0]}", podman.image, "sleep", "1000000"]
    podman("run", "--detach", "--name", sibling, *words)
    try:
        with run(podman, sibling, HOLD, "/file", how, start=True) as holder:
            read_until(holder.stdout, b"held")
            assert not is_free(file, how)
            assert [run(podman, box, TRY, "/l/f", how) for box in boxes] == ["EAGAIN"] * 2
            holder.stdin.close()
            assert holder.wait(60) == 0
        with run(podman, boxes[0], HOLD, "/l/f", how, start=True) as holder:
            read_until(holder.stdout, b"held")
            assert run(podman, sibling, TRY, "/file", how) == "EAGAIN"
            holder.stdin.close()
            assert holder.wait(60) == 0
        assert becomes_free(file, how)
    finally:
        podman("rm", "--force", "--time", "0", sibling)


def test_a_lock_is_its_open_files_and_goes_with_the_last_process_that_has_it(podman, boxes, file):
    """flock(2): a child has it when its parent has closed the file; one that was renamed has it still."""
    keep = """
import fcntl, os, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
child = os.fork()
if child:
    file.close()
    os.waitpid(child, 0)
else:
    print("held", flush=True)
    sys.stdin.read()
"""
    moved = file.with_name("moved")
    with run(podman, boxes[0], keep, "/l/f", start=True) as holder:
        read_until(holder.stdout, b"held")
        file.rename(moved)
        assert not is_free(moved, "flock")
        assert run(podman, boxes[1], TRY, "/l/moved", "flock") == "EAGAIN"
        holder.stdin.close()
        assert holder.wait(60) == 0
    assert becomes_free(moved, "flock")


def together(runs: list[subprocess.Popen[bytes]]) -> list[list[str]]:
    """Let programs that begin with BEGIN go at once; the words that each says at its end."""
    for one in runs:
        read_until(one.stdout, b"ready\n")
    for one in runs:
        one.stdin.write(b"go\n")
        one.stdin.flush()
    return [one.communicate(timeout=LONG_S)[0].decode().split() for one in runs]


def said_by(runs: list[subprocess.Popen[bytes]]) -> list[str]:
    """What each says to its end."""
    return [one.communicate(timeout=LONG_S)[0].decode().strip() for one in runs]


def counted(podman, boxes, program: str, path: Path, of_box: int, of_host: int, *words: str):
    """Run `program` in both containers and on the host."""
    runs = [run(podman, box, program, f"/l/{path.name}", of_box, *words, start=True) for box in boxes]
    if of_host:
        runs.append(on_host(program, path, of_host, *words))
    return runs


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_increments_of_two_containers_and_the_host_are_all_there(podman, boxes, volume, how):
    counter = volume / f"counter-{how}"
    counter.write_text("0")
    said = together(counted(podman, boxes, BEGIN + COUNT, counter, 50, 4900, how))
    assert [done for done, _ in said] == ["done"] * 3
    assert int(counter.read_text()) == 5000
    assert all(int(met) for _, met in said)


def database(path: Path, mode: str) -> Path:
    base = sqlite3.connect(path)
    assert base.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
    base.execute("create table t (v)")
    base.execute("insert into t values (0)")
    base.commit()
    base.close()
    return path


def value_of(path: Path) -> int:
    base = sqlite3.connect(path)
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    (found,) = base.execute("select v from t").fetchone()
    base.close()
    return int(found)


def test_a_database_with_a_rollback_journal_loses_nothing(podman, boxes, volume):
    base = database(volume / "rollback.db", "delete")
    said = together(counted(podman, boxes, BEGIN + ADD_TOGETHER, base, 30, 9940))
    assert [done for done, _ in said] == ["done"] * 3
    assert value_of(base) == 10_000
    assert sum(int(met) for _, met in said) > 0


def test_a_database_with_a_write_ahead_log_is_one_kernels_at_a_time_and_loses_nothing(podman, boxes, volume):
    base = database(volume / "wal.db", "wal")
    kept = sqlite3.connect(base)  # a connection of the host, which has the index mapped
    assert kept.execute("select v from t").fetchone() == (0,)
    short = ADD.replace("timeout=600", "timeout=1")
    refused = run(podman, boxes[0], short, "/l/wal.db", 1)
    assert refused in ("0 database is locked", "0 locking protocol")
    kept.close()
    said = said_by(counted(podman, boxes, ADD, base, 50, 0))  # who comes second waits, or is told as above
    done = sum(int(words.split()[0]) for words in said)
    assert "50" in said
    assert value_of(base) == done
    for box in boxes:
        assert run(podman, box, ADD, "/l/wal.db", 25) == "25"
    assert value_of(base) == done + 50
