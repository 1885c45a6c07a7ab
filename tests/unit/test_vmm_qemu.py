"""The real QEMU and the real virtiofsd in their jails, with a guest of a few instructions."""

import os
import re
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from bufferzone import jail
from bufferzone.errors import HostError, VmmError
from bufferzone.model import Confinement, Share, VmSpec
from bufferzone.spawn import Child
from bufferzone.storage import virtiofs
from bufferzone.vmm.qemu import driver
from bufferzone.vmm.qemu.channels import Channels
from bufferzone.vmm.qemu.process import Qemu

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: own uids and mount namespaces"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
]
UID = jail.UID_BASE + 2 * jail.UID_SLOTS - 4
MESSAGE = b"hello from the guest\r\n\0"


def tiny_kernel() -> bytes:
    """ELF with a PVH note: prints a line on the serial port, waits for a byte, resets (triple fault)."""
    base = 0x100000
    code = b"\xbe" + struct.pack("<I", base + 0x200) + b"\xba\xf8\x03\x00\x00"  # esi: text, dx: port 0x3f8
    code += b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # print until NUL
    code += b"\xb2\xfd\xec\xa8\x01\x74\xfb"  # wait for the line status register to say: data
    code += b"\x0f\x01\x1d" + struct.pack("<I", base + 0x240) + b"\xcc"  # empty interrupt table, breakpoint
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", base + 0x100)  # XEN_ELFNOTE_PHYS32_ENTRY
    headers = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, 0x1000, 0x1000, 0x1000)  # PT_LOAD
    headers += struct.pack(
        "<IIQQQQQQ", 4, 4, 0x300, base + 0x300, base + 0x300, len(note), len(note), 4
    )  # PT_NOTE
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 0x100, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    image = bytearray(0x1000)
    for offset, part in ((0, elf), (64, headers), (0x100, code), (0x200, MESSAGE), (0x300, note)):
        image[offset : offset + len(part)] = part
    return bytes(image)


@dataclass
class Started:
    vmm: Qemu
    console: socket.socket


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as owned:
        yield owned


def boot(
    stack: ExitStack, directory: Path, kernel: bytes, *, shares: tuple[Share, ...] = (), memory_mib: int = 32
) -> Started:
    path = directory / "kernel"
    path.write_bytes(kernel)
    spec = VmSpec(
        name="test",
        vcpus=1,
        memory_mib=memory_mib,
        accelerator="tcg",
        kernel=str(path),
        initrd="",
        kernel_arguments=("x",),
        shares=shares,
    )
    channels = Channels()
    console = stack.enter_context(channels.console.dup())
    confinement = Confinement(uid=UID, gid=UID)
    vmm = driver.launch(spec, confinement, channels, console_log_fd=-1, restored=False)
    stack.callback(vmm.close)
    vmm.watch()
    return Started(vmm, console)


def await_console(started: Started, text: str) -> None:
    """Ends by itself: with the text, or with the machine."""
    poll_s = 0.02
    for _ in range(1000):
        if any(text in line for line in started.vmm.console_tail()):
            return
        if started.vmm.wait_exit(poll_s) is not None:
            break
    raise started.vmm.failure("print on the console")


def status_fields(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_guest_prints_and_ends_and_the_end_is_explained(stack: ExitStack, tmp_path: Path) -> None:
    started = boot(stack, tmp_path, tiny_kernel())
    started.vmm.greet()
    assert re.fullmatch(r"qemu \d+\.\d+\.\d+", started.vmm.version)
    await_console(started, "hello from the guest")
    assert started.vmm.qmp.status() == "running"
    started.console.send(b"x")
    assert started.vmm.wait_exit(20) == 0
    error = started.vmm.failure("run")
    assert error.code == "vm-reset"
    assert "hello from the guest" in error.message


def test_qemu_has_nothing_but_what_it_was_given(stack: ExitStack, tmp_path: Path) -> None:
    vmm = boot(stack, tmp_path, tiny_kernel()).vmm
    vmm.greet()
    fields = status_fields(vmm.pid)
    assert fields["Uid"].split() == [str(UID)] * 4
    assert fields["Groups"] == ""
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"
    for task in os.listdir(f"/proc/{vmm.pid}/task"):
        assert "Seccomp_filters:\t3" in Path(f"/proc/{vmm.pid}/task/{task}/status").read_text()
    assert set(os.listdir(f"/proc/{vmm.pid}/root")) == {"boot", "dev", "firmware", "lib", "lib64", "usr"}
    assert set(os.listdir(f"/proc/{vmm.pid}/root/dev")) == {"null", "urandom"}
    assert all(" ro," in line for line in Path(f"/proc/{vmm.pid}/mountinfo").read_text().splitlines())
    for name in ("net", "mnt", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{vmm.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    assert Path(f"/proc/{vmm.pid}/environ").read_bytes() == b""
    open_files = [os.readlink(f"/proc/{vmm.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{vmm.pid}/fd")]
    assert not [
        name for name in open_files if name.startswith("/") and not name.startswith(("/dev/null", "/memfd"))
    ]


def test_close_ends_it_with_the_agents_channel_and_may_be_called_twice(
    stack: ExitStack, tmp_path: Path
) -> None:
    vmm = boot(stack, tmp_path, tiny_kernel()).vmm
    vmm.greet()
    assert vmm.wait_exit(0) is None
    vmm.close()
    assert vmm.wait_exit(0) == -9
    assert vmm.agent.fileno() == -1
    vmm.close()


def test_a_guest_stands_still_when_told_to_and_runs_on(stack: ExitStack, tmp_path: Path) -> None:
    vmm = boot(stack, tmp_path, tiny_kernel()).vmm
    vmm.greet()
    vmm.stop()
    assert vmm.qmp.status() == "paused"
    vmm.resume()
    assert vmm.qmp.status() == "running"


def test_a_vm_that_cannot_be_started_leaves_no_descriptor_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "_PLACES", (str(tmp_path),))
    before = set(os.listdir("/proc/self/fd"))
    log_fd = os.open(tmp_path / "console.log", os.O_WRONLY | os.O_CREAT)
    spec = VmSpec(
        name="x", vcpus=1, memory_mib=32, accelerator="tcg", kernel="/k", initrd="", kernel_arguments=()
    )
    with pytest.raises(HostError, match="program not found"):
        driver.start(spec, Confinement(uid=UID, gid=UID), console_log_fd=log_fd)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_broken_kernel_is_explained_with_qemus_own_words(stack: ExitStack, tmp_path: Path) -> None:
    vmm = boot(stack, tmp_path, b"\x7fELF garbage").vmm
    with pytest.raises(VmmError) as caught:
        vmm.greet()
    assert caught.value.code == "vm-failed"
    assert "start QEMU" in caught.value.message
    assert "qemu said:" in caught.value.message


def test_a_killed_qemu_is_told_from_a_failed_one(stack: ExitStack, tmp_path: Path) -> None:
    vmm = boot(stack, tmp_path, tiny_kernel()).vmm
    vmm.greet()
    vmm.kill()
    assert vmm.wait_exit(10) == -9
    assert vmm.failure("run").code == "vm-killed"


def test_missing_programs_and_firmware_have_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "_PLACES", (str(tmp_path),))
    with pytest.raises(HostError) as caught:
        driver.find_program()
    assert (caught.value.code, caught.value.hint) == ("qemu-missing", "apt-get install qemu-system-x86")
    with pytest.raises(HostError, match="no firmware for QEMU"):
        driver.find_firmware((str(tmp_path),))
    with pytest.raises(HostError) as caught:
        virtiofs.find_program((("c", str(tmp_path / "x")),))
    assert caught.value.code == "virtiofsd-missing"


@pytest.fixture
def virtiofsd(stack: ExitStack, tmp_path: Path) -> tuple[Child, Share]:
    virtiofs.find_program()
    (tmp_path / "tree").mkdir()
    tree = os.open(tmp_path / "tree", os.O_PATH | os.O_DIRECTORY)
    child, share = virtiofs.start(
        tree, str(tmp_path), uid=UID + 1, gid=UID + 1, log_fd=sys.__stderr__.fileno(), open_files=4096
    )
    os.close(tree)
    stack.callback(child.close)
    assert os.listdir(tmp_path) == ["tree"], "the socket must have no name"
    return child, share


def test_virtiofsd_is_confined_and_ends_with_qemu(
    stack: ExitStack, tmp_path: Path, virtiofsd: tuple[Child, Share]
) -> None:
    child, share = virtiofsd
    started = boot(stack, tmp_path, tiny_kernel(), shares=(share,))
    os.close(share.fd)
    await_console(started, "hello from the guest")
    fields = status_fields(child.pid)
    own = virtiofs.find_program().kind == "c"  # the Rust one is uid 0 of its user namespace
    assert fields["Uid"].split() == [str(UID + 1) if own else "0"] * 4
    assert (
        int(fields["CapEff"], 16) == 0x880000DB
    )  # chown dac_override fowner fsetid setgid setuid mknod setfcap
    assert int(fields["CapBnd"], 16) == 0
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    assert [row.split()[3:5] for row in limits.splitlines() if row.startswith("Max open files")] == [
        ["4096", "4096"]
    ]
    for task in os.listdir(f"/proc/{child.pid}/task"):
        assert "Seccomp:\t2" in Path(f"/proc/{child.pid}/task/{task}/status").read_text()
    assert os.readlink(f"/proc/{child.pid}/ns/user") != os.readlink("/proc/self/ns/user")
    started.vmm.kill()
    assert started.vmm.wait_exit(10) == -9
    assert child.wait_exit(10) == 0
