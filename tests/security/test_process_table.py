"""The table that `podman top` reads: the guest fills it, and nothing in it may end the waiter."""

import os

import pytest

from bufferzone.client.process_table import ProcessTable
from bufferzone.wire.agent import PidsResponse, ProcessInfo


@pytest.fixture
def shown(tmp_path):
    table = ProcessTable()
    table.use(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))

    def show(*processes):
        sent = PidsResponse(processes=list(processes)).encode()
        table.fill(PidsResponse.decode(sent).processes)
        return {int(name) for name in os.listdir(tmp_path) if name.isdigit()}

    yield show
    os.close(table._directory)


def test_pids_that_collide_are_shown_once(shown):
    twins = [ProcessInfo(pid=7, command="a"), ProcessInfo(pid=8, ns_pid=7, command="b")]
    assert shown(*twins) == {7}
    assert shown(*twins) == {7}  # the rows before are gone, also those


def test_numbers_that_are_no_pids_are_left_out(shown):
    assert shown(*(ProcessInfo(pid=pid) for pid in (0, 1, 1 << 22, (1 << 22) + 1, (1 << 64) - 1))) == {
        1,
        1 << 22,
    }


def test_a_command_that_is_no_text_reaches_no_terminal(shown, tmp_path):
    info = ProcessInfo(pid=1)
    info.command = b"/bin/\x1b]0;owned\x07\xff\r\n) R 1 1".decode("utf-8", "surrogateescape")
    assert shown(info) == {1}
    read = b"".join((tmp_path / "1" / name).read_bytes() for name in ("stat", "cmdline", "status"))
    assert not set(read) & {0x1B, 0x07, 0x0D, 0xFF}
    assert (tmp_path / "1/stat").read_bytes().count(b"\n") == 1


def test_times_beyond_64_bits_stay_within(shown, tmp_path):
    most = (1 << 64) - 1
    shown(ProcessInfo(pid=1, cpu_ms=most, start_s=most, uid=most, ppid=most))
    numbers = (tmp_path / "1/stat").read_text().rpartition(")")[2].split()[1:]
    assert all(int(number) < 1 << 63 for number in numbers)
    assert "4294967295" in (tmp_path / "1/status").read_text()


def test_thousands_of_processes_make_a_bounded_table(shown):
    assert len(shown(*(ProcessInfo(pid=pid, command="x" * 9000) for pid in range(1, 3000)))) == 2048


def test_a_full_disk_shortens_the_table(shown, monkeypatch):
    real, left = os.mkdir, [7]

    def scarce(*args, **more):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        real(*args, **more)

    monkeypatch.setattr(os, "mkdir", scarce)
    assert shown(*(ProcessInfo(pid=pid, command="x") for pid in range(1, 9))) == {1, 2, 3}
    left[0] = 99
    assert shown(ProcessInfo(pid=5)) == {5}
