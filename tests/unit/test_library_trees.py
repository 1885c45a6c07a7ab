"""Trees of files that a guest sends: what is no name, leads out, or is cut off makes nothing on the host."""

from __future__ import annotations

import io
import os
import subprocess

import pytest

from bufferzone.errors import CallerError, GuestError, HostError
from bufferzone.library import trees
from bufferzone.wire import files
from bufferzone.wire.files import Entry
from bufferzone.workload import idle


def stream(*entries):
    data = b"".join(files.encode(Entry(kind, name, size=len(body))) + body for kind, name, body in entries)
    return io.BytesIO(data + files.encode(Entry(files.END, "")))


TOP = (files.DIRECTORY, "", b"")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ".", "a//b", "a/", "..", "x\0y"])
def test_a_name_that_leads_anywhere_but_down_is_refused(tmp_path, name):
    with pytest.raises(GuestError, match="an entry that is none"):
        trees.receive(stream(TOP, (files.FILE, name, b"evil")), str(tmp_path / "t"), 1 << 20)
    assert os.listdir(tmp_path) == ["t"]
    assert os.listdir(tmp_path / "t") == []


@pytest.mark.parametrize("target", [b"/etc", b"..", b"../../x", b"a/../../x"])
def test_a_link_that_leads_out_is_refused(tmp_path, target):
    with pytest.raises(GuestError) as caught:
        trees.receive(stream(TOP, (files.LINK, "l", target)), str(tmp_path / "t"), 1 << 20)
    assert caught.value.code == "unsafe-link"


def test_a_link_on_the_way_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "t/l").symlink_to(tmp_path / "out")
    with pytest.raises(HostError):
        trees.receive(stream(TOP, (files.FILE, "l/x", b"evil")), str(tmp_path / "t"), 1 << 20)
    trees.receive(stream(TOP, (files.FILE, "l", b"file")), str(tmp_path / "t"), 1 << 20)
    assert (tmp_path / "t/l").read_bytes() == b"file"
    assert os.listdir(tmp_path / "out") == []


def test_more_than_the_limit_and_half_a_stream_are_refused(tmp_path):
    with pytest.raises(GuestError, match="larger"):
        trees.receive(stream(TOP, (files.FILE, "x", b"12345")), str(tmp_path / "t"), 4)
    whole = stream(TOP, (files.FILE, "x", b"12345")).getvalue()
    for length in range(len(whole)):
        with pytest.raises(GuestError, match="cut off"):
            trees.receive(io.BytesIO(whole[:length]), str(tmp_path / "t"), 100)


def test_what_was_sent_is_what_is_received(tmp_path):
    (tmp_path / "s/below").mkdir(parents=True)
    (tmp_path / "s/below/f").write_bytes(os.urandom(600_000))
    (tmp_path / "s/l").symlink_to("below/f")
    sent = io.BytesIO()
    trees.send(str(tmp_path / "s"), sent)
    sent.seek(0)
    trees.receive(sent, str(tmp_path / "t"), 1 << 20)
    assert (tmp_path / "t/below/f").read_bytes() == (tmp_path / "s/below/f").read_bytes()
    assert os.readlink(tmp_path / "t/l") == "below/f"
    with pytest.raises(CallerError):
        trees.send(str(tmp_path / "none"), io.BytesIO())


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its code is x86-64")
def test_the_idle_program_waits_and_reaps(tmp_path):
    process = subprocess.Popen([idle.write(str(tmp_path))], stdout=subprocess.PIPE)
    try:
        ignored = 0
        while not ignored & 1 << 16:  # SIGCHLD, 17; what we ignore, it does from its start
            with open(f"/proc/{process.pid}/status") as file:
                ignored = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
            assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
