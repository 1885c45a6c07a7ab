"""Streams without a terminal: every byte arrives, both ways at once; who stops reading stops one writer."""

from __future__ import annotations

import hashlib
import select
import subprocess
import threading

import pytest

from vm.podman import read_until

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

MIB = 1 << 20
SIZE = 100 * MIB
#: seconds for 100 MiB each way and on stderr, under TCG, with other sandboxes on the machine
PATIENCE_S = 240


def pattern(size: int):
    """`size` bytes that repeat with no power of two, in blocks of 1 MiB."""
    block = bytes(i * 7 % 251 for i in range(251)) * (MIB // 251 + 2)
    for at in range(0, size, MIB):
        yield block[at % 251 :][:MIB]


def digest(size: int) -> str:
    summary = hashlib.sha256()
    for block in pattern(size):
        summary.update(block)
    return summary.hexdigest()


class Drain(threading.Thread):
    """Reads a pipe to its end; `sha256` and `size` are known then."""

    def __init__(self, pipe) -> None:
        super().__init__(daemon=True)
        self._pipe, self._summary, self.size = pipe, hashlib.sha256(), 0
        self.start()

    def run(self) -> None:
        while data := self._pipe.read(MIB):
            self._summary.update(data)
            self.size += len(data)

    @property
    def sha256(self) -> str:
        self.join(PATIENCE_S)
        return self._summary.hexdigest()


@pytest.fixture(scope="module")
def box(podman, nothing_left):
    podman("run", "--detach", "--name", "box", podman.image, "sleep", "1000000")
    return "box"


def test_a_hundred_mib_in_out_and_on_stderr_at_once_arrive_unchanged(podman):
    """stdin comes back on stdout and, through tee, on stderr."""
    words = ("run", "--rm", "--interactive", "--log-driver", "none", podman.image, "tee", "/dev/stderr")
    pipe = subprocess.PIPE
    with podman.start(*words, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as child:
        out, err = Drain(child.stdout), Drain(child.stderr)
        for block in pattern(SIZE):
            child.stdin.write(block)
        child.stdin.close()
        assert (out.sha256, out.size) == (digest(SIZE), SIZE)
        assert (err.sha256, err.size) == (digest(SIZE), SIZE)
        assert child.wait(PATIENCE_S) == 0


def test_end_of_input_reaches_the_process_and_its_last_words_arrive(podman, box):
    done = podman("exec", "--interactive", box, "sh", "-c", "wc -c; echo last", input=b"x" * 70000)
    assert done.out == b"70000\nlast\n"


def test_without_interactive_the_input_is_empty(podman, box):
    assert podman("exec", box, "wc", "-c", input=b"unseen").text == "0"


def test_output_without_a_line_break_and_of_any_byte_arrives(podman, box):
    every = bytes(range(256)) * 3
    done = podman("exec", "--interactive", box, "cat", input=every)
    assert done.out == every


def test_output_of_a_child_that_outlives_the_process_does_not_hold_up_the_end(podman, box):
    assert podman("exec", box, "sh", "-c", "sleep 1000000 & echo out", timeout_s=20).text == "out"


def test_a_reader_that_stops_blocks_the_writer_and_nothing_else(podman, box):
    script = "dd if=/dev/zero bs=65536 count=1600 2>/dev/null; echo end"
    with podman.start("exec", box, "sh", "-c", script, stdout=subprocess.PIPE, bufsize=0) as child:
        first = child.stdout.read(1)  # it writes; from now on nobody reads
        _await_blocked(podman, box)
        for _ in range(3):
            assert podman("exec", box, "echo", "still here", timeout_s=20).text == "still here"
        rest = Drain(child.stdout)
        rest.join(PATIENCE_S)
        assert len(first) + rest.size == 1600 * 65536 + len(b"end\n")
        assert child.wait(PATIENCE_S) == 0


def _await_blocked(podman, box: str) -> None:
    """Until dd sleeps in a write that nobody takes: nothing of it changes between two looks."""
    look = "cat /proc/$(pidof dd)/stat; usleep 300000"
    before, now = "", podman("exec", box, "sh", "-c", look).text
    for _ in range(50):
        before, now = now, podman("exec", box, "sh", "-c", look).text
        if now == before:  # its processor time too
            return
    pytest.fail(f"dd never came to rest: {now}")


def test_a_writer_that_pauses_does_not_end_the_input(podman, box):
    with podman.start(
        "exec", "--interactive", box, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        for word in (b"one\n", b"two\n", b"three\n"):
            child.stdin.write(word)
            read_until(child.stdout, word)
            assert not select.select([child.stdout], [], [], 0.2)[0]
        child.stdin.close()
        assert child.wait(20) == 0


def test_attach_shows_output_from_now_on_and_passes_input(podman):
    podman(
        "run",
        "--detach",
        "--interactive",
        "--name",
        "attached",
        podman.image,
        "sh",
        "-c",
        "while read x; do echo got $x; done",
    )
    with podman.start(
        "attach", "attached", stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        child.stdin.write(b"word\n")
        read_until(child.stdout, b"got word\n")
        child.stdin.close()
        assert child.wait(30) == 0
    assert podman("wait", "attached").text == "0"
