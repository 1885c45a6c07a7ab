"""--pidfd-socket: who makes a process gets a descriptor of what stands for it on the host."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from pathlib import Path

import pytest

from flow.cli import DEADLINE_S, Cli, needs_host

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


@pytest.mark.parametrize("verb", ["create", "run", "exec"])
def test_a_descriptor_of_the_process_on_the_host_comes_through_the_pidfd_socket(bz, tmp_path, verb):
    path, pid_file = tmp_path / "socket", tmp_path / "pid"
    words = ["--pidfd-socket", str(path), "--pid-file", str(pid_file)]
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(DEADLINE_S)
        server.bind(str(path))
        server.listen()
        if verb == "exec":
            bz.create("one", bz.bundle("pause"))
            bz("start", "one")
            words = ["exec", "--detach", *words, "one", "pause"]
        else:
            flags = ["--detach"] if verb == "run" else []
            words = [verb, *flags, "--bundle", str(bz.bundle("pause")), *words, "one"]
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        subprocess.run(bz.command(*words), env={}, check=True, timeout=DEADLINE_S, **quiet)
        connection, _ = server.accept()
        with connection:
            _, (pidfd,), _, _ = socket.recv_fds(connection, 64, 1)
    told = Path(f"/proc/self/fdinfo/{pidfd}").read_text().split("Pid:\t")[1].split()[0]
    assert told == pid_file.read_text()
    bz("kill", "one", "KILL")
    assert select.select([pidfd], [], [], DEADLINE_S)[0]
    os.close(pidfd)


def test_a_pidfd_socket_that_is_none_is_refused_before_anything_is_made(bz):
    words = ("--pidfd-socket", "/nonexistent", "--bundle", str(bz.bundle("pause")))
    assert "--pidfd-socket: not a unix socket: /nonexistent" in bz("create", *words, "one", check=1).stderr
    assert bz.left() == []
