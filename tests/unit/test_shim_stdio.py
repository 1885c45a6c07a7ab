"""Stdio copies between an agent and host descriptors, against a scripted agent in this process."""

import hashlib
import os
import threading

import pytest

from bufferzone.errors import CallerError, HostError, StateError
from bufferzone.shim import loggers
from bufferzone.shim.stdio import open_stdio
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty


class FakeAgent:
    """Serves Read from given bytes and collects Write; `calls` keeps the method names."""

    def __init__(self, out=b"", err=b""):
        self.data = {agent.STDOUT: out, agent.STDERR: err}
        self.written = bytearray()
        self.closed = threading.Event()
        self.refuse_writes = False
        self.calls = []

    def call(self, method, request, reply, timeout_s=0):
        self.calls.append(method)
        if method == "Read":
            data = self.data[request.stream]
            self.data[request.stream] = data[request.limit :]
            return agent.ReadResponse(data=data[: request.limit])
        if method == "Write":
            if self.refuse_writes:
                raise StateError("stdin is closed", code="stdin-closed")
            self.written += request.data
        if method == "CloseStdin":
            self.closed.set()
        return Empty()


REF = agent.ProcessRef(id="c")


def test_two_streams_arrive_whole_and_apart():
    out, err = os.urandom(3 << 20), os.urandom(1 << 20)
    ends = [os.pipe(), os.pipe()]
    stdio = open_stdio("", "fd:0", "fd:1", [ends[0][1], ends[1][1]])
    got = {}

    def read(name, fd):
        with open(fd, "rb") as file:
            got[name] = hashlib.sha256(file.read()).digest()

    threads = [
        threading.Thread(target=read, args=(n, e[0])) for n, e in zip(("out", "err"), ends, strict=True)
    ]
    for thread in threads:
        thread.start()
    stdio.start(FakeAgent(out, err), REF, terminal=False)
    stdio.finish()
    for thread in threads:
        thread.join(20)
    assert got == {"out": hashlib.sha256(out).digest(), "err": hashlib.sha256(err).digest()}


def test_a_reader_sees_the_end_when_the_guest_has_closed_and_not_at_the_end_of_the_process():
    (out, ours), (err, theirs) = os.pipe(), os.pipe()
    fake = FakeAgent(b"out", b"")
    stdio = open_stdio("", "fd:0", "fd:1", [ours, theirs])
    stdio.start(fake, REF, terminal=False)
    for fd, text in ((out, b"out"), (err, b"")):
        with open(fd, "rb") as file:
            assert file.read() == text  # ends, though nobody has called finish
    stdio.print_line("a line that nobody reads\n")
    stdio.finish()


def test_a_terminal_stays_open_until_the_process_ends():
    read_end, write_end = os.pipe()
    stdio = open_stdio("", "fd:0", "", [write_end])
    stdio.start(FakeAgent(), REF, terminal=True)
    for copy in stdio._outputs:
        assert copy.ended.wait(20)
    assert stdio.stdout >= 0
    stdio.finish()
    os.close(read_end)


def test_input_is_delivered_and_then_ended():
    read_end, write_end = os.pipe()
    fake = FakeAgent()
    stdio = open_stdio("fd:0", "", "", [read_end])
    stdio.start(fake, REF, terminal=False)
    os.write(write_end, b"hello")
    os.close(write_end)
    assert fake.closed.wait(20)
    assert bytes(fake.written) == b"hello"
    stdio.finish()


def test_close_stdin_delivers_what_was_written_before_it():
    read_end, write_end = os.pipe()
    fake = FakeAgent()
    stdio = open_stdio("fd:0", "", "", [read_end])
    os.write(write_end, b"last words")
    stdio.start(fake, REF, terminal=False)
    stdio.close_stdin()
    assert fake.closed.wait(20)
    assert bytes(fake.written) == b"last words"
    stdio.finish()
    os.close(write_end)


def test_finishing_does_not_wait_for_an_input_that_never_ends():
    read_end, write_end = os.pipe()
    stdio = open_stdio("fd:0", "", "", [read_end])
    stdio.start(FakeAgent(), REF, terminal=False)
    stdio.finish()
    with pytest.raises(BrokenPipeError):  # nobody reads it any more
        os.write(write_end, b"x")
    os.close(write_end)


def test_a_reader_that_went_away_is_told_to_the_guest():
    read_end, write_end = os.pipe()
    os.close(read_end)
    fake = FakeAgent(out=b"x" * 10)
    stdio = open_stdio("", "fd:0", "", [write_end])
    stdio.start(fake, REF, terminal=False)
    stdio.finish()
    assert "CloseOutput" in fake.calls


class Asked:
    """An answer to a request that was sent with the one that made the process."""

    def __init__(self, reply):
        self.reply = reply

    def result(self, cls):
        assert type(self.reply) is cls
        return self.reply


def test_what_was_asked_with_the_start_is_not_asked_again():
    read_end, write_end = os.pipe()
    fake = FakeAgent()
    stdio = open_stdio("", "fd:0", "", [write_end])
    asked = stdio.first_requests(REF, terminal=False)
    assert [method for method, _ in asked] == ["Read", "Read", "CloseStdin"]
    assert [request.stream for _, request in asked[:2]] == [agent.STDOUT, agent.STDERR]
    answers = [Asked(agent.ReadResponse(data=b"first")), Asked(agent.ReadResponse()), Asked(Empty())]
    stdio.start(fake, REF, terminal=False, pending=answers)
    stdio.finish()
    assert os.read(read_end, 100) == b"first"
    assert fake.calls == ["Read"]  # after the first bytes; stderr was at its end


@pytest.mark.parametrize("kind", ["null", "ended pipe", "pipe", "pipe with bytes", "file"])
def test_input_is_ended_early_only_where_none_can_come(kind, tmp_path):
    read_end, write_end = os.pipe()
    if kind == "pipe with bytes":
        os.write(write_end, b"x")
    if kind in ("ended pipe", "pipe with bytes"):
        os.close(write_end)
    if kind == "null":
        os.dup2(os.open("/dev/null", os.O_RDONLY), read_end)
    if kind == "file":
        (tmp_path / "file").write_text("text")
        os.dup2(os.open(tmp_path / "file", os.O_RDONLY), read_end)
    stdio = open_stdio("fd:0", "", "", [read_end])
    asked = [method for method, _ in stdio.first_requests(REF, terminal=False)]
    assert ("CloseStdin" in asked) == (kind in ("null", "ended pipe"))
    assert stdio.first_requests(REF, terminal=True) == []
    fake = FakeAgent()
    stdio.start(fake, REF, terminal=False)
    if kind == "pipe":
        os.close(write_end)
    assert fake.closed.wait(20)
    assert bytes(fake.written) == {"pipe with bytes": b"x", "file": b"text"}.get(kind, b"")
    stdio.finish()


def test_every_descriptor_of_the_request_is_closed_when_a_uri_is_wrong():
    before = len(os.listdir("/proc/self/fd"))
    read_end, write_end = os.pipe()
    with pytest.raises(CallerError, match="no descriptor fd:7"):
        open_stdio("fd:0", "fd:7", "", [read_end, write_end])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fifo_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(HostError, match=r"cannot open stdout .*: No such file or directory"):
        open_stdio("", str(tmp_path / "none"), "", [])


def test_an_unknown_scheme_is_refused():
    with pytest.raises(CallerError, match="unsupported stdio scheme: http:///x"):
        open_stdio("", "http:///x", "", [])


#: tells what it was given and what it read, once both streams have ended
_LOG_PROGRAM = """#!/usr/bin/python3 -IS
import os, sys
os.close(5)
out, err = (open(fd).read() for fd in (3, 4))
with open(sys.argv[2], "w") as file:
    print(sys.argv[1:], sorted(os.environ.items()), out, err, file=file)
"""


def _log_program(directory, text=_LOG_PROGRAM):
    program = directory / "log program"
    program.write_text(text)
    program.chmod(0o755)
    return f"binary://{str(program).replace(' ', '%20')}?to={directory}/told"


def test_a_log_program_gets_both_streams_and_the_names_of_the_container(tmp_path, monkeypatch):
    uri = _log_program(tmp_path)
    reaped = threading.Event()
    reap = loggers.Logger._reap
    monkeypatch.setattr(loggers.Logger, "_reap", lambda logger: (reap(logger), reaped.set()))
    stdio = open_stdio("", uri, uri, [], ("c1", "k8s.io"))
    os.write(stdio.stdout, b"out")
    os.write(stdio.stderr, b"err")
    stdio.close()
    assert reaped.wait(60)
    told = (tmp_path / "told").read_text()
    assert f"['to', '{tmp_path}/told']" in told
    assert "[('CONTAINER_ID', 'c1'), ('CONTAINER_NAMESPACE', 'k8s.io')" in told
    assert told.endswith("out err\n")


def test_a_log_program_that_is_not_there_is_one_line_and_leaves_nothing_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="cannot start the log program /nosuch: No such file"):
        open_stdio("", "binary:///nosuch", "", [])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_log_program_that_never_reads_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "_READY_S", 0.05)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="was not ready within"):
        open_stdio("", _log_program(tmp_path, "#!/bin/sh\nexec sleep 1000\n"), "", [])
    assert len(os.listdir("/proc/self/fd")) == before


def fill(fd):
    """Write until the pipe takes no more."""
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        pass


def test_our_own_line_goes_to_stderr_and_never_blocks():
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    fill(write_end)
    os.set_blocking(write_end, True)
    stdio = open_stdio("", "", "fd:0", [write_end])
    stdio.print_line("bufferzone: c: gone\n")
    stdio.close()
    with open(read_end, "rb") as pipe:
        assert set(pipe.read()) == {ord("x")}  # there was no room for it
