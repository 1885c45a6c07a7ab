"""Containers and execs with a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.errors import StateError
from bufferzone.wire import agent as wire
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


def terminal_spec(rootfs: Path, *args: str) -> dict[str, Any]:
    spec = make_spec(rootfs, *args)
    spec["process"]["terminal"] = True
    spec["process"]["consoleSize"] = {"width": 91, "height": 37}
    return spec


def test_a_terminal_echoes_and_the_program_reads_lines(guest: Guest, rootfs: Path) -> None:
    guest.create("c", terminal_spec(rootfs, "sh", "-c", "read line; echo got $line"))
    guest.start("c")
    guest.write(b"hello\n", "c")
    assert guest.read_all("c") == b"hello\r\ngot hello\r\n"
    assert guest.wait("c").exit_status == 0
    assert guest.read("c", stream=wire.STDERR) == b""


def test_the_terminal_has_the_size_asked_for_and_follows_resize(guest: Guest, rootfs: Path) -> None:
    guest.create(
        "c",
        terminal_spec(
            rootfs,
            "sh",
            "-c",
            "stty size; trap 'stty size' WINCH; echo ready; while :; do read x; done",
        ),
    )
    guest.start("c")
    assert b"37 91\r\n" in guest.read_until(b"ready", "c")
    guest.call("Resize", wire.ResizeRequest(id="c", width=120, height=50))
    guest.write(b"\n", "c")  # the shell runs its trap when the read ends
    assert b"50 120\r\n" in guest.read_until(b"50 120\r\n", "c")


def test_the_terminal_is_the_controlling_one_and_is_dev_console(guest: Guest, rootfs: Path) -> None:
    guest.create(
        "c",
        terminal_spec(
            rootfs, "sh", "-c", "tty; echo x >/dev/tty; echo y >/dev/console; cut -d' ' -f7 /proc/1/stat"
        ),
    )
    guest.start("c")
    assert guest.read_all("c") == b"/dev/pts/0\r\nx\r\ny\r\n34816\r\n"  # 136:0


def test_control_c_interrupts_the_foreground_program(guest: Guest, rootfs: Path) -> None:
    guest.create("c", terminal_spec(rootfs, "sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; read x"))
    guest.start("c")
    guest.read_until(b"ready\r\n", "c")
    guest.write(b"\x03", "c")
    assert b"caught" in guest.read_all("c")
    assert guest.wait("c").exit_status == 9


def test_closing_stdin_does_not_hang_up_a_terminal(guest: Guest, rootfs: Path) -> None:
    guest.create("c", terminal_spec(rootfs, "sh", "-c", "echo ready; read x; echo $x"))
    guest.start("c")
    guest.read_until(b"ready\r\n", "c")
    guest.close_stdin("c")
    guest.write(b"still\n", "c")
    assert b"still" in guest.read_all("c")


def test_an_exec_gets_a_terminal_of_its_own(guest: Guest, rootfs: Path) -> None:
    guest.create("c", terminal_spec(rootfs, "cat"))
    guest.start("c")
    guest.exec("c", "e", "sh", "-c", "tty; stty size", terminal=True, consoleSize={"width": 40, "height": 10})
    assert guest.read_all("c", "e") == b"/dev/pts/1\r\n10 40\r\n"
    assert guest.wait("c", "e").exit_status == 0


def test_the_terminal_belongs_to_the_user(guest: Guest, rootfs: Path) -> None:
    spec = terminal_spec(rootfs, "sh", "-c", "stat -Lc %u:%g:%a /dev/pts/0")
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    guest.create("c", spec)
    guest.start("c")
    assert guest.read_all("c") == b"1000:5:620\r\n"


def test_a_process_without_a_terminal_cannot_be_resized(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    with pytest.raises(StateError, match="no terminal"):
        guest.call("Resize", wire.ResizeRequest(id="c", width=1, height=1))


def test_a_terminal_whose_container_is_killed_before_start_is_at_its_end(guest: Guest, rootfs: Path) -> None:
    guest.create("c", terminal_spec(rootfs, "cat"))
    guest.signal("c", 9)
    assert guest.wait("c").exit_status == 137
    assert guest.read("c") == b""
