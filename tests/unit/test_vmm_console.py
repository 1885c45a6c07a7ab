"""The bounded log and the failure explainer."""

import os
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.vmm import console
from bufferzone.vmm.console import BoundedLog, Reader, open_file
from bufferzone.vmm.explain import explain


def test_memory_and_file_stay_bounded_and_keep_the_end(tmp_path: Path) -> None:
    log = BoundedLog(open_file(str(tmp_path / "console.log")))
    for number in range(40):
        log.write(b"%05d " % number + b"x" * 50_000 + b"\n")
        assert os.stat(tmp_path / "console.log").st_size <= console.FILE_BYTES
    log.write(b"the end\n")
    log.close()
    assert (tmp_path / "console.log").read_bytes().endswith(b"the end\n")
    assert log.tail(1) == ["the end"]


def test_hostile_bytes_do_not_reach_the_terminal() -> None:
    log = BoundedLog()
    log.write(b"\x1b]0;owned\x07 \xff\xfe \xc2\x9b31m\r\nplain\r\n\n")
    assert log.tail() == ["?]0;owned? \ufffd\ufffd ?31m", "plain"]
    assert all(line.isprintable() for line in log.tail())


def test_a_full_disk_costs_the_file_only() -> None:
    log = BoundedLog(os.open("/dev/full", os.O_WRONLY))
    log.write(b"kept in memory\n")
    log.write(b"still\n")
    assert log.tail() == ["kept in memory", "still"]


def test_a_reader_ends_with_its_writer_and_loses_nothing() -> None:
    reader, writer = os.pipe()
    thread = Reader("test", reader, BoundedLog())
    os.write(writer, b"before start\n")
    thread.start()
    os.write(writer, b"after start\n")
    os.close(writer)
    thread.join(5)
    assert thread.log.tail() == ["before start", "after start"]


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(HostError, match=r"cannot write .*/link: Too many levels"):
        open_file(str(tmp_path / "link"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("facts", "code", "text"),
    [
        ({"status": 1, "panicked": True}, "vm-panic", "guest kernel panic"),
        ({"status": None, "waited_s": 30.0}, "vm-timeout", "did not answer within 30 s"),
        ({"status": -9}, "vm-killed", "SIGKILL"),
        ({"status": -11}, "vm-crashed", "signal 11"),
        ({"status": 0}, "vm-off", "powered off"),
        ({"status": 1}, "vm-failed", "exit status 1"),
    ],
)
def test_every_end_has_its_own_words_and_a_hint(facts: dict[str, object], code: str, text: str) -> None:
    error = explain("boot the guest kernel", program="QEMU", **facts)  # type: ignore[arg-type]
    assert error.code == code
    assert text in error.message
    assert "boot the guest kernel" in error.message
    assert error.hint
    assert "\n" not in error.line()


def test_a_panic_is_quoted_and_not_the_call_trace_after_it() -> None:
    console = [
        "early",
        "sysrq: crash",
        "Kernel panic - not syncing: why",
        "CPU: 0",
        *("trace" for _ in range(30)),
    ]
    error = explain("run", program="QEMU", status=1, panicked=True, console=console)
    quoted = "last console lines: sysrq: crash | Kernel panic - not syncing: why | CPU: 0"
    assert error.message.endswith(quoted)


def test_what_was_printed_is_quoted() -> None:
    error = explain(
        "start QEMU", program="QEMU", status=1, stderr=["bad option"], console=["a", "b", "c", "d", "e", "f"]
    )
    assert "qemu said: bad option" in error.message
    assert "last console lines: b | c | d | e | f" in error.message
