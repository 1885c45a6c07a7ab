"""Standard streams: whole, in order, with back-pressure, and a reader that stops stops nobody else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.errors import CallerError, GuestError, StateError
from bufferzone.wire import agent as wire
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root

SIZE = 10 << 20


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


def test_ten_mib_out_arrive_with_the_same_hash(guest: Guest, rootfs: Path) -> None:
    data = os.urandom(SIZE)
    (rootfs / "data").write_bytes(data)
    guest.create("c", make_spec(rootfs, "cat", "/data"))
    guest.start("c")
    assert hashlib.sha256(guest.read_all("c")).digest() == hashlib.sha256(data).digest()
    assert guest.wait("c").exit_status == 0


def test_ten_mib_in_arrive_with_the_same_hash(guest: Guest, rootfs: Path) -> None:
    data = os.urandom(SIZE)
    guest.create("c", make_spec(rootfs, "sha256sum"))
    guest.start("c")
    for at in range(0, SIZE, wire.CHUNK):
        guest.write(data[at : at + wire.CHUNK], "c")
    guest.close_stdin("c")
    assert guest.read_all("c").split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_both_directions_and_stderr_flow_at_the_same_time(guest: Guest, rootfs: Path) -> None:
    data = os.urandom(2 << 20)
    guest.create("c", make_spec(rootfs, "sh", "-c", "tee /dev/stderr"))
    guest.start("c")
    out, err, at = b"", b"", 0
    reads = {stream: guest.send("Read", wire.ReadRequest(id="c", stream=stream)) for stream in (1, 2)}
    while reads:
        if at < len(data):
            guest.write(data[at : at + wire.CHUNK], "c")
            at += wire.CHUNK
            if at >= len(data):
                guest.close_stdin("c")
        for stream, pending in list(reads.items()):
            got = guest.result(pending, wire.ReadResponse).data
            out, err = (out + got, err) if stream == 1 else (out, err + got)
            reads.pop(stream)
            if got:
                reads[stream] = guest.send("Read", wire.ReadRequest(id="c", stream=stream))
    assert out == data
    assert err == data


def test_stdout_and_stderr_are_kept_apart_and_end_of_file_is_told_again(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "echo out; echo err >&2"))
    guest.start("c")
    assert guest.read_all("c") == b"out\n"
    assert guest.read_all("c", stream=wire.STDERR) == b"err\n"
    assert guest.read("c") == b""
    assert guest.read("c", stream=wire.STDERR) == b""


def test_a_read_gives_no_more_than_its_limit(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "printf", "abcdef"))
    guest.start("c")
    guest.wait("c")
    assert guest.read("c", limit=4) == b"abcd"
    assert guest.read("c", limit=1 << 31) == b"ef"


def test_output_written_before_the_end_can_be_read_after_it(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "head -c 500000 /dev/zero"))
    guest.start("c")
    assert guest.wait("c").exit_status == 0
    assert len(guest.read_all("c")) == 500000


def test_a_reader_that_stops_blocks_its_writer_and_nobody_else(guest: Guest, rootfs: Path) -> None:
    guest.create("stuck", make_spec(rootfs, "sh", "-c", "head -c 8000000 /dev/zero; exit 3"))
    guest.start("stuck")
    waiting = guest.send("Wait", wire.ProcessRef(id="stuck"))
    for number in range(5):
        assert guest.run(make_spec(rootfs, "echo", "free"), id=f"free{number}")[1] == "free\n"
    assert not guest.answered(waiting)
    assert len(guest.read_all("stuck")) == 8000000
    assert guest.result(waiting, wire.WaitResponse).exit_status == 3


def test_a_blocked_write_waits_for_its_reader_and_nobody_else_does(guest: Guest, rootfs: Path) -> None:
    guest.create(
        "c", make_spec(rootfs, "sh", "-c", "read -r line </dev/null; exec 3<&0; cat /fifo; wc -c <&3")
    )
    os.mkfifo(rootfs / "fifo")
    guest.start("c")
    writes = [guest.send("Write", wire.WriteRequest(id="c", data=b"x" * (3 << 20)))]
    assert guest.run(make_spec(rootfs, "echo", "free"), id="free")[1] == "free\n"
    assert not guest.answered(writes[0])
    with pytest.raises(StateError, match="pending"):
        guest.write(b"y", "c")
    guest.close_stdin("c")  # takes effect after what is being written
    (rootfs / "fifo").write_text("")
    guest.result(writes[0], wire.Empty)
    assert int(guest.read_all("c")) == 3 << 20


def test_a_second_read_of_a_stream_is_refused_while_one_waits(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    first = guest.send("Read", wire.ReadRequest(id="c", stream=1))
    with pytest.raises(StateError) as caught:
        guest.read("c")
    assert caught.value.code == "read-pending"
    guest.write(b"hello", "c")
    assert guest.result(first, wire.ReadResponse).data == b"hello"


def test_writing_to_a_process_that_is_gone_says_that_stdin_is_closed(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    guest.start("c")
    guest.wait("c")
    with pytest.raises(GuestError) as caught:
        guest.write(b"x", "c")
    assert caught.value.code == "stdin-closed"


def test_writing_to_a_process_that_closed_its_stdin_says_so_too(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "exec <&-; echo closed; sleep 1000"))
    guest.start("c")
    guest.read_until(b"closed", "c")
    with pytest.raises(GuestError) as caught:
        guest.write(b"x", "c")
    assert caught.value.code == "stdin-closed"


def test_a_stream_that_does_not_exist_is_an_error(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    with pytest.raises(CallerError, match="no such stream: 7"):
        guest.read("c", stream=7)


def test_a_waiting_read_is_answered_with_end_of_file_when_the_container_is_deleted(
    guest: Guest, rootfs: Path
) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    pending = guest.send("Read", wire.ReadRequest(id="c", stream=1))
    guest.delete("c")
    assert guest.result(pending, wire.ReadResponse).data == b""


def test_stdio_belongs_to_the_user_of_the_container(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(
        rootfs, "sh", "-c", "stat -Lc %u /proc/self/fd/0 /proc/self/fd/1; echo again >/proc/self/fd/1"
    )
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    _, out, err = guest.run(spec)
    assert (out.split(), err) == (["1000", "1000", "again"], "")


def test_output_ends_with_its_process_even_when_a_daemon_keeps_the_pipe(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.exec("c", "e", "sh", "-c", "sleep 1000 & echo told")
    assert guest.read_all("c", "e") == b"told\n"
    assert guest.wait("c", "e").exit_status == 0
    assert len(guest.call("Pids", wire.ProcessRef(id="c")).processes) == 2


def test_an_output_that_nobody_reads_any_more_is_a_broken_pipe(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.exec("c", "e", "cat", "/dev/zero")
    guest.read("c", "e")
    guest.call("CloseOutput", wire.ReadRequest(id="c", exec_id="e", stream=1))
    answer = guest.wait("c", "e")
    assert (answer.exit_status, answer.signal) == (128 + 13, 13)


def test_where_the_output_of_an_outlived_exec_ends_is_told_and_that_of_its_descendants_follows(
    guest: Guest, rootfs: Path
) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    later = "touch /alone; until [ -e /go ]; do sleep 0.05; done; echo late"
    wait = "until [ -e /alone ]; do sleep 0.05; done"  # for it to have let go of the errors
    guest.exec("c", "e", "sh", "-c", f"({later}) 2>/dev/null & {wait}; echo own", outlived=True)
    assert guest.wait("c", "e").exit_status == 0
    request = wire.ReadRequest(id="c", exec_id="e", stream=1)
    first = guest.call("Read", request)
    assert (first.data, first.ended) == (b"own\n", True)
    errors = guest.call("Read", wire.ReadRequest(id="c", exec_id="e", stream=2))
    assert (errors.data, errors.ended) == (b"", False)  # closed by all: no more to come
    (rootfs / "go").touch()
    second = guest.call("Read", request)
    assert (second.data, second.ended) == (b"late\n", False)
    last = guest.call("Read", request)
    assert (last.data, last.ended) == (b"", False)


def test_a_waiting_read_of_an_outlived_exec_is_told_that_it_has_ended(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.exec("c", "e", "sh", "-c", "sleep 1000 & read line; exit 0", outlived=True)
    waiting = guest.send("Read", wire.ReadRequest(id="c", exec_id="e", stream=1))
    guest.write(b"go\n", "c", "e")
    answer = guest.result(waiting, wire.ReadResponse)
    assert (answer.data, answer.ended) == (b"", True)
