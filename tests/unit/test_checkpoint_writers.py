"""Who writes a checkpoint writes no more than it may, where it may, and leaves nothing when it is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from bufferzone.errors import HostError, VmmError
from bufferzone.linux import scratch
from bufferzone.snapshot.copier import Saver
from bufferzone.storage import erofs
from bufferzone.vm import cgroups
from bufferzone.vmm.qemu.migration import Drain
from unit.guest_harness import needs_root

MIB = 1 << 20
needs_mkfs = pytest.mark.skipif(
    not any(os.path.exists(f"{place}/mkfs.erofs") for place in ("/usr/bin", "/usr/sbin")),
    reason="not installed: mkfs.erofs",
)


def memfd(size: int = 0) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def give(drain: Drain, data: bytes) -> OSError | None:
    """Write all of it to the drain and close; what the writer is told."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(drain.write_end, view) :]
    except OSError as error:
        return error
    finally:
        drain.close_write_end()
    return None


def test_a_stream_arrives_whole_up_to_the_limit() -> None:
    target = memfd()
    drain = Drain(target, MIB)
    assert give(drain, b"x" * MIB) is None
    drain.finish(30)
    drain.stop()
    assert os.fstat(target).st_size == MIB
    os.close(target)


def test_a_writer_without_an_end_is_cut_off() -> None:
    target = memfd()
    drain = Drain(target, MIB)
    told = give(drain, b"x" * (16 * MIB))
    assert told is not None
    assert told.errno == errno.EPIPE
    with pytest.raises(VmmError, match="larger than 1 MiB"):
        drain.finish(30)
    drain.stop()
    assert os.fstat(target).st_size <= MIB
    os.close(target)


def test_a_stream_that_does_not_end_or_fit_is_an_error() -> None:
    drain = Drain(-1, MIB)
    with pytest.raises(VmmError, match="does not end"):
        drain.finish(0.01)
    drain.stop()
    full = os.open("/dev/full", os.O_WRONLY)
    drain = Drain(full, MIB)
    give(drain, b"x")
    with pytest.raises(OSError, match="No space left"):
        drain.finish(30)
    drain.stop()
    os.close(full)


def test_the_saver_packs_and_tells_what_went_wrong(tmp_path: Path) -> None:
    source = memfd(4 * MIB)
    os.pwrite(source, b"data", MIB)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, 4 * MIB)
    with Saver() as saver:
        digest = saver.pack(source, target)
        assert os.pread(target, 4, MIB) == b"data"
        assert os.fstat(target).st_blocks * 512 < MIB
        full = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(OSError, match="No space left") as caught:
            saver.pack(source, full)
        assert caught.value.errno == errno.ENOSPC
        assert saver.pack(source, target) == digest  # it goes on
        os.kill(saver._pid, signal.SIGKILL)
        with pytest.raises(HostError, match="the process that writes the checkpoint died"):
            saver.pack(source, target)
    for fd in (source, target, full):
        os.close(fd)


COPIER = """
import os, sys
from bufferzone.vm import cgroups
from bufferzone.snapshot.copier import Saver
source, name = os.open(sys.argv[1], os.O_RDONLY), sys.argv[2]
size = os.fstat(source).st_size
place = os.path.join("/sys/fs/cgroup/memory", name)
os.mkdir(place)
cgroups.write_file(os.path.join(place, "memory.limit_in_bytes"), str(size // 2))
cgroups.write_file(os.path.join(place, "cgroup.procs"), str(os.getpid()))
target = os.memfd_create("copy")
os.ftruncate(target, size)
with Saver() as saver:
    assert saver.outside
    saver.copy(source, target)
print(os.stat(target).st_blocks * 512 >= size, cgroups.read_file(place + "/memory.failcnt").strip())
"""


@needs_root
@pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.F_OK), reason="no memory cgroup (v1)"
)
def test_what_the_saver_copies_is_not_charged_to_the_container(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(MIB) * 128)
    name = f"bzsaver-{os.getpid()}"
    path = os.pathsep.join(entry for entry in sys.path if entry.endswith("src"))
    try:
        done = subprocess.run(
            [sys.executable, "-c", COPIER, str(source), name],
            env={"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        with suppress(OSError):
            cgroups.remove(f"/sys/fs/cgroup/memory/{name}")
    assert (done.stdout, done.returncode) == ("True 0\n", 0), done.stderr


@needs_root
@needs_mkfs
def test_a_root_with_a_huge_sparse_file_does_not_fill_the_disk(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.truncate(os.open(tmp_path / "tree" / "sparse", os.O_WRONLY | os.O_CREAT), 64 << 30)
    packing = erofs.pack(str(tmp_path / "tree"), str(tmp_path / "disks"), uid=2_000_000_001, most=8 * MIB)
    with pytest.raises(HostError, match="larger than 8 MiB"):
        packing.image()
    assert os.fstat(packing._fd).st_size <= 8 * MIB
    packing.close()


@needs_root
@needs_mkfs
def test_a_fifo_holds_up_nobody_and_what_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "fifo")
    packing = erofs.pack(str(tmp_path / "tree"), str(tmp_path / "disks"), uid=2_000_000_001, most=8 * MIB)
    os.close(packing.image())
    packing.close()
    monkeypatch.setattr(erofs, "DEADLINE_S", 0.0)  # as one that reads a file which became a FIFO
    start = erofs.jail.start
    monkeypatch.setattr(erofs, "find_program", lambda: "/usr/bin/sleep")
    monkeypatch.setattr(erofs.jail, "start", lambda argv, confined: start([argv[0], "1000"], confined))
    packing = erofs.pack(str(tmp_path / "tree"), str(tmp_path / "disks"), uid=2_000_000_001, most=8 * MIB)
    with pytest.raises(HostError, match="not done after 0 s"):
        packing.image()
    packing._child.wait_exit(30)
    packing.close()


def test_another_thread_leaves_a_directory_that_is_in_use(tmp_path: Path) -> None:
    with scratch.scratch(str(tmp_path)) as first:
        thread = threading.Thread(target=scratch.tidy, args=(str(tmp_path),))
        thread.start()
        thread.join()
        assert [str(path) for path in tmp_path.iterdir()] == [first]


def test_what_a_killed_fork_left_goes_at_the_next_and_what_is_in_use_stays(tmp_path: Path) -> None:
    parent = tmp_path / "forks"
    with scratch.scratch(str(parent)) as first:
        child = os.fork()  # as a waiter: it does not keep the directory
        if child == 0:
            signal.pause()
        code = "import sys; from bufferzone.linux import scratch; import os, signal\n"
        code += "with scratch.scratch(sys.argv[1]) as d: print(d, flush=True); signal.pause()"
        path = os.pathsep.join(entry for entry in sys.path if entry.endswith("src"))
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(parent)], stdout=subprocess.PIPE, env={"PYTHONPATH": path}
        )
        assert other.stdout is not None
        second = other.stdout.readline().decode().strip()
        assert {first, second} == {str(path) for path in parent.iterdir()}
        other.kill()
        other.wait(30)
        other.stdout.close()
    assert os.listdir(parent) == [os.path.basename(second)]
    (parent / "not-ours").mkdir()
    with scratch.scratch(str(parent)) as third:
        assert set(os.listdir(parent)) == {os.path.basename(third), "not-ours"}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
