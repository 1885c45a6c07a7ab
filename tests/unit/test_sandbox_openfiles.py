"""How many files virtiofsd has open, and what is done before they are too many; here of this process."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from bufferzone.errors import VmmError
from bufferzone.sandbox import openfiles


@pytest.fixture
def many() -> Iterator[int]:
    """Open files enough for a bound; how many there are."""
    with open(os.devnull) as first:
        held = [os.dup(first.fileno()) for _ in range(100)]
        yield openfiles.open_files(os.getpid())
        for fd in held:
            os.close(fd)


def watcher(most: int, forget=lambda: None) -> tuple[openfiles.OpenFiles, list[str]]:
    said: list[str] = []
    return openfiles.OpenFiles(os.getpid(), most, forget, said.append), said


def test_descriptors_are_counted() -> None:
    given = [os.open(os.devnull, os.O_RDONLY) for _ in range(7)]
    pipe = subprocess.PIPE
    with subprocess.Popen(["cat"], pass_fds=given, stdin=pipe, stdout=pipe, stderr=pipe) as other:
        assert other.stdin
        assert other.stdout
        other.stdin.write(b"x")
        other.stdin.flush()
        assert other.stdout.read(1) == b"x"  # it has begun, and closed what its libraries took
        assert openfiles.open_files(other.pid) == 3 + len(given)
        other.stdin.close()
    for fd in given:
        os.close(fd)


def test_a_look_is_taken_the_sooner_the_fewer_are_left(many: int) -> None:
    times = [watcher(most)[0].look() for most in (1 << 20, 100_000, 20_000, many * 4 // 3 + 8)]
    assert times[0] == 10.0
    assert 3.5 < times[1] < 3.75
    assert 0.7 < times[2] < 0.75
    assert times[3] == 0.1


def test_the_guest_is_asked_once_until_it_answers_and_again_after_a_pause(many: int) -> None:
    asked, answer, calls = threading.Event(), threading.Event(), []

    def forget() -> None:
        calls.append(1)
        asked.set()
        assert answer.wait(60)

    files, said = watcher(many, forget)
    assert files.look() == 0.1
    assert asked.wait(60)
    assert files.look() == 0.1
    assert calls == [1]
    asking = files._asking
    answer.set()
    assert asking
    asking.join(60)
    assert files.look() == 5.0  # they are open still
    assert files.look() == 0.1
    assert asked.wait(60)
    head = f"the VM has {many} files of the host open, of {many} that it may"
    assert said == [
        f"{head}: it forgets those that nobody uses",
        f"{head}: its programs themselves have them open: beyond, they get EMFILE (open_files)",
    ]


def test_a_guest_that_does_not_answer_is_no_failure_of_the_sandbox(many: int) -> None:
    def forget() -> None:
        raise VmmError("it is gone", code="agent-lost")

    files, _ = watcher(many, forget)
    assert files.look() == 0.1
    asking = files._asking
    assert asking
    asking.join(60)
    assert files.look() == 5.0


def test_a_helper_that_is_gone_is_looked_at_seldom() -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        child.wait()
    gone = openfiles.OpenFiles(child.pid, 100, lambda: None, lambda text: None)
    assert gone.look() == 10.0
