"""Terminals: the console socket of a detached process, its window size, and a person's own terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import termios

import pytest

from bufferzone import state
from flow.cli import DEADLINE_S, Cli, needs_host, read

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


def receive_master(listener):
    """conmon's side of --console-socket: one message with the terminal's name and its master."""
    connection, _ = listener.accept()
    with connection:
        name, fds, _, _ = socket.recv_fds(connection, 4096, 4)
    assert len(fds) == 1
    return name.decode(), fds[0]


def line(fd):
    """The next line of a terminal, without its end."""
    text = b""
    while not text.endswith(b"\n"):
        text += read(fd)
    return text.decode().strip()


def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    listener.settimeout(DEADLINE_S)
    return listener


def test_a_detached_terminal_arrives_at_the_console_socket_and_follows_its_size(bz, tmp_path):
    bundle = bz.bundle("size", process={"terminal": True, "args": ["size"]})
    words = ("--bundle", str(bundle), "--console-socket", str(tmp_path / "console"))
    with listen(tmp_path / "console") as listener:
        conmon = bz.conmon(
            "create", *words, "--pid-file", str(tmp_path / "pid"), "one", stdin=subprocess.DEVNULL
        )
        name, master = receive_master(listener)
    assert name.startswith("/dev/pts/")
    assert conmon.stdout.readline() == "created 0\n"
    assert not termios.tcgetattr(master)[3] & (termios.ECHO | termios.ISIG)
    bz("start", "one")
    termios.tcsetwinsize(master, (24, 80))
    assert line(master) == "24 80"
    bz("kill", "one", "KILL")
    out, _ = conmon.communicate(timeout=DEADLINE_S)
    assert out == "ended 137\n"
    os.close(master)


def test_the_consoles_size_of_the_spec_is_there_from_the_start(bz, tmp_path):
    size = {"width": 100, "height": 30}
    bundle = bz.bundle("size", process={"terminal": True, "args": ["size"], "consoleSize": size})
    with listen(tmp_path / "console") as listener:
        command = bz.command(
            "create", "-b", str(bundle), "--console-socket", str(tmp_path / "console"), "one"
        )
        create = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={})
        _, master = receive_master(listener)
    assert create.wait(DEADLINE_S) == 0
    assert termios.tcgetwinsize(master) == (30, 100)
    os.close(master)


def test_a_console_socket_that_nobody_serves_fails_the_create_and_leaves_nothing(bz):
    bundle = bz.bundle("size", process={"terminal": True, "args": ["size"]})
    path = bz.base / "console"
    listen(path).close()
    done = bz("create", "-b", str(bundle), "--console-socket", str(path), "one", check=1)
    assert done.stderr == f"bufferzone: console socket {path}: Connection refused\n"
    assert bz.left() == []


def test_a_console_socket_without_a_terminal_is_refused(bz):
    with listen(bz.base / "console"):
        flags = ("-b", str(bz.bundle("pause")), "--console-socket", str(bz.base / "console"))
        stderr = bz("create", *flags, "one", check=1).stderr
    assert "--console-socket is for a detached process with a terminal" in stderr


def test_an_attached_terminal_is_raw_while_it_lasts_and_restored_after(bz):
    bundle = bz.bundle("size", process={"terminal": True, "args": ["size"]})
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 81))
    before = termios.tcgetattr(slave)
    command = bz.command("run", "--bundle", str(bundle), "one")
    run = subprocess.Popen(command, stdin=slave, stdout=slave, env={}, start_new_session=True)
    assert line(master) == "25 81"
    assert not termios.tcgetattr(slave)[3] & termios.ICANON
    bz("kill", "one", "KILL")
    assert run.wait(DEADLINE_S) == 137
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
    assert bz.left() == []


def test_a_process_with_a_terminal_runs_where_nobody_has_one(bz):
    bundle = bz.bundle("end", process={"terminal": True, "args": ["end", "7"]})
    bz("run", "--bundle", str(bundle), "one", check=7)
    assert bz.left() == []


def test_stdin_that_is_no_terminal_leaves_the_size_to_stdout(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (31, 99))
    command = bz.command("exec", "--tty", "one", "size")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=slave, env={})
    os.close(slave)
    assert line(master) == "31 99"
    process.kill()
    assert process.wait(DEADLINE_S) == -9
    process.stdin.close()
    os.close(master)


DETACHED = [("create",), ("run", "--detach"), ("exec", "--detach")]


@pytest.mark.parametrize("words", DETACHED, ids=lambda words: words[0])
def test_a_detached_terminal_holds_neither_stdout_nor_stderr_of_the_verb(bz, words):
    process = {"terminal": True, "args": ["/bin/size"]}
    command = [*words, "--console-socket", str(bz.base / "console")]
    if words[0] == "exec":
        bz.create("one", bz.bundle("pause"))
        bz("start", "one")
        (bz.base / "process.json").write_text(
            json.dumps({**process, "cwd": "/", "user": {"uid": 0, "gid": 0}})
        )
        command += ["--process", str(bz.base / "process.json")]
    else:
        command += ["--bundle", str(bz.bundle("size", process=process))]
    with listen(bz.base / "console") as listener:
        verb = subprocess.Popen(
            bz.command(*command, "one"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
        )
        _, master = receive_master(listener)
        said, _ = verb.communicate(timeout=DEADLINE_S)  # up to the end of the file: nobody else has it
    assert (verb.returncode, said) == (0, b"")
    if words[0] == "create":
        bz("start", "one")
    termios.tcsetwinsize(master, (24, 80))
    assert line(master) == "24 80"  # and it lives
    os.close(master)


def test_a_lost_vm_is_told_on_the_terminal_that_the_process_had(bz):
    bundle = bz.bundle("size", process={"terminal": True, "args": ["size"]})
    with listen(bz.base / "console") as listener:
        flags = ("-b", str(bundle), "--console-socket", str(bz.base / "console"))
        create = subprocess.Popen(bz.command("create", *flags, "one"), stdin=subprocess.DEVNULL, env={})
        _, master = receive_master(listener)
    assert create.wait(DEADLINE_S) == 0
    os.kill(state.owner_pid(str(bz.root / "one")), signal.SIGKILL)
    assert read(master) == b"bufferzone: one: the shim that ran its VM was killed\r\n"
    os.close(master)
