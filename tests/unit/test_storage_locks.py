"""The host's side of a VM's file locks: what it takes from a guest, and what others on the host see."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from bufferzone.linux import filelock
from bufferzone.linux.filelock import END
from bufferzone.storage.locks import MOST_FILES, Keeper
from bufferzone.wire.locks import EXCLUSIVE, FLOCK, NONE, RANGE, SHARED, LockStep


class Tree:
    """A shared tree that is a plain directory."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY)

    def names(self) -> list[str]:
        return ["v", "one"]


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "v" / "below").mkdir(parents=True)
    (tmp_path / "v" / "below" / "f").write_text("0123456789")
    (tmp_path / "one").write_text("single")
    (tmp_path / "secret").write_text("not shared")
    return tmp_path


@pytest.fixture
def keeper(volume):
    tree = Tree(volume)
    keeper = Keeper(tree)  # type: ignore[arg-type]
    yield keeper
    keeper.close()
    os.close(tree.fd)


def named(volume: Path, path: str = "below/f", *, number: int = 1, **more: object) -> LockStep:
    inode = os.stat(volume / "v" / path).st_ino
    given = {"kind": FLOCK, "mode": EXCLUSIVE, "end": END, **more}
    return LockStep(file=number, volume="v", path=path.encode(), inode=inode, **given)


def free(path: Path, how: int = fcntl.LOCK_EX) -> bool:
    """Whether somebody else on the host gets a flock."""
    with open(path) as file:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def way(path: Path, start: int, end: int) -> int:
    """The type of the range lock that an exclusive one of somebody else meets."""
    with open(path, "r+") as file:
        return filelock.test_range(file.fileno(), filelock.WRITE, start, end)[0]


def test_a_lock_of_the_vm_keeps_the_host_out_until_it_is_given_back(keeper, volume):
    file = volume / "v" / "below" / "f"
    assert keeper.take(named(volume)).error == 0
    assert not free(file)
    assert keeper.take(LockStep(file=1, kind=FLOCK, mode=SHARED, end=END)).error == 0
    assert not free(file)
    assert free(file, fcntl.LOCK_SH)
    assert keeper.take(LockStep(file=1, kind=FLOCK, mode=NONE, end=END)).error == 0
    assert free(file)


def test_a_lock_of_the_host_keeps_the_vm_out_and_nothing_waits(keeper, volume):
    with open(volume / "v" / "below" / "f", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert keeper.take(named(volume)).error == errno.EAGAIN
        fcntl.lockf(file, fcntl.LOCK_EX, 5, 2)
        assert keeper.take(LockStep(file=1, kind=RANGE, mode=SHARED, start=0, end=3)).error == errno.EAGAIN
        assert keeper.take(LockStep(file=1, kind=RANGE, mode=SHARED, start=7, end=END)).error == 0
        test = keeper.take(LockStep(file=1, kind=RANGE, mode=EXCLUSIVE, start=0, end=END, test=True))
        assert (test.mode, test.start, test.end) == (EXCLUSIVE, 2, 7)


def test_ranges_are_held_byte_by_byte_and_each_kind_for_itself(keeper, volume):
    file = volume / "v" / "below" / "f"
    assert keeper.take(named(volume, kind=RANGE, mode=EXCLUSIVE, start=2, end=4)).error == 0
    assert free(file)
    assert way(file, 0, 2) == filelock.UNLOCK
    assert way(file, 3, 9) == filelock.WRITE
    assert keeper.take(LockStep(file=1, kind=RANGE, mode=SHARED, start=3, end=4)).error == 0
    assert way(file, 3, 4) == filelock.READ


def test_all_locks_go_with_the_file_and_with_the_vm(keeper, volume):
    file = volume / "v" / "below" / "f"
    keeper.take(named(volume))
    keeper.take(LockStep(file=1, forget=True))
    assert free(file)
    assert keeper.take(LockStep(file=1, kind=FLOCK, mode=SHARED, end=END)).error == errno.ENOLCK
    keeper.take(named(volume))
    keeper.close()
    assert free(file)


def test_a_volume_may_be_a_single_file(keeper, volume):
    inode = os.stat(volume / "one").st_ino
    step = LockStep(file=3, volume="one", inode=inode, kind=FLOCK, mode=EXCLUSIVE, end=END)
    assert keeper.take(step).error == 0
    assert not free(volume / "one")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../secret", errno.EXDEV),
        ("/etc/passwd", errno.ENOENT),
        ("link", errno.ELOOP),
        ("fifo", errno.ENOLCK),
        ("below/f\0", errno.ENOENT),
        ("below/other", errno.ENOENT),
        ("below/f/", errno.ENOTDIR),
    ],
)
def test_a_guest_names_nothing_but_files_of_its_volumes(keeper, volume, path, error):
    (volume / "v" / "link").symlink_to("../secret")
    os.mkfifo(volume / "v" / "fifo")
    step = LockStep(file=1, volume="v", path=path.encode(), inode=1, kind=FLOCK, mode=EXCLUSIVE, end=END)
    if path == "fifo":
        step.inode = os.stat(volume / "v" / "fifo").st_ino
    assert keeper.take(step).error in (error, errno.EXDEV)


def test_a_name_that_is_another_file_by_now_is_refused(keeper, volume):
    step = named(volume)
    step.inode += 1
    assert keeper.take(step).error == errno.ENOLCK


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": 2},
        {"mode": 3},
        {"start": -1},
        {"start": 9, "end": 9},
        {"end": 0},
        {"volume": "secret", "path": b""},
        {"volume": "v/below", "path": b"f"},
        {"file": 7, "volume": ""},
    ],
)
def test_nonsense_is_an_error_of_its_step(keeper, volume, wrong):
    step = named(volume)
    for key, value in wrong.items():
        setattr(step, key, value)
    assert keeper.take(step).error in (errno.EINVAL, errno.ENOENT, errno.ENOLCK)


def test_a_guest_has_a_bounded_number_of_locked_files(keeper, volume, monkeypatch):
    monkeypatch.setattr("bufferzone.storage.locks.MOST_FILES", 2)
    assert MOST_FILES > 2
    for number in range(3):
        (volume / "v" / str(number)).touch()
    errors = [keeper.take(named(volume, str(number), number=number)).error for number in range(3)]
    assert errors == [0, 0, errno.ENOLCK]
