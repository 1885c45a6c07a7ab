"""A guest or a helper that cannot come up or goes down: told with phase, console, QEMU's words and a hint."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.guestimage import store
from bufferzone.linux import kvm
from bufferzone.model import ImageRef
from bufferzone.wire.agent import CHANNEL_IS_VSOCK
from vm import private
from vm.leftovers import Watch
from vm.verbs import Runtime, bundle, listing, privileged

pytestmark = pytest.mark.vm

QEMU = "/usr/bin/qemu-system-x86_64"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/bin/virtiofsd")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "root")
    yield runtime
    runtime.close()


@pytest.fixture
def watch(runtime: Runtime) -> Watch:
    return Watch(runtime.root)


def settings(path: Path, **values: Any) -> tuple[str, ...]:
    """Words in front of a command that make it see these settings."""
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return private.words(settings=str(path))


def spinning_kernel() -> bytes:
    """An ELF file with a PVH entry that jumps to itself for ever."""
    base = 0x100000
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", base + 0x100)  # XEN_ELFNOTE_PHYS32_ENTRY
    headers = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, 0x1000, 0x1000, 0x1000)  # PT_LOAD
    at = base + 0x300
    headers += struct.pack("<IIQQQQQQ", 4, 4, 0x300, at, at, len(note), len(note), 4)  # PT_NOTE
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 0x100, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    image = bytearray(0x1000)
    for offset, part in ((0, elf), (64, headers), (0x100, b"\xeb\xfe"), (0x300, note)):
        image[offset : offset + len(part)] = part
    return bytes(image)


def refused(runtime: Runtime, watch: Watch, made: Path) -> str:
    """The one line of a create that failed and left nothing, neither in the state root nor in the bundle."""
    before = listing(made)
    result = runtime.try_create("c", made)
    assert result.status == 1
    assert listing(made) == before
    watch.assert_nothing_left()
    return result.line


def test_a_panic_ends_its_own_sandbox_with_a_message_that_says_so(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    other = runtime.run("other", bundle(tmp_path / "other", "echo up; cat /proc/uptime; exec sleep 1000"))
    other.expect("up")
    command = "echo ready; echo c > /proc/sysrq-trigger; exec sleep 1000"
    made = bundle(tmp_path / "bundle", command, process=privileged(command)["process"])
    container = runtime.run("c", made)
    assert container.wait() == 137
    lines = container.errors().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(
        "bufferzone: c: the virtual machine ended with a guest kernel panic during: run;"
    )
    assert "sysrq triggered crash" in lines[0].lower()
    failure = runtime.await_status("c", "stopped")["annotations"]["bufferzone.failure"]
    assert "guest kernel panic" in failure
    assert runtime.status("other") == "running"
    assert runtime.ok("exec", "other", "echo", "well").out == "well\n"
    for id in ("c", "other"):
        runtime.ok("delete", "--force", id)
    watch.assert_nothing_left()


def test_an_agent_that_dies_is_a_panic(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    """The container shares the guest's PID namespace and writes rubbish over the code of PID 1's libc."""
    command = """
        line=$(grep 'r-xp.*libc' /proc/1/maps | head -n 1)
        start=${line%%-*}
        echo ready
        head -c 1200000 /dev/zero | dd of=/proc/1/mem bs=4096 seek=$((0x$start / 4096)) conv=notrunc
        exec sleep 1000
    """
    value = privileged(command)
    linux = {"namespaces": [{"type": kind} for kind in ("ipc", "uts", "mount", "network")]}
    dev = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
    mounts = [*value["mounts"], dev]
    made = bundle(tmp_path / "bundle", "", process=value["process"], linux=linux, mounts=mounts)
    container = runtime.run("c", made)
    assert container.wait(60) == 137
    last = container.errors().splitlines()[-1]
    assert "ended with a guest kernel panic during: run" in last
    assert "Kernel panic - not syncing: Attempted to kill init" in last
    runtime.ok("delete", "c")
    watch.assert_nothing_left()


def test_a_kernel_that_hangs_is_given_up_with_phase_and_hint(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    kernel = tmp_path / "spin"
    kernel.write_bytes(spinning_kernel())
    runtime.before = settings(tmp_path / "c.toml", kernel=str(kernel), boot_timeout_s=3)
    line = refused(runtime, watch, bundle(tmp_path / "bundle"))
    assert "the virtual machine did not answer within 3 s during: boot the guest; " in line
    assert "the console is empty" in line
    assert "(hint: a busy host or TCG may need a longer boot timeout" in line


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_kernel_that_is_none_is_told_in_qemus_words(
    damage: str, runtime: Runtime, watch: Watch, guest_image: ImageRef, tmp_path: Path
) -> None:
    with open(guest_image.kernel, "rb") as file:
        content = {"empty": b"", "text": b"not a kernel\n" * 100, "cut": file.read(1 << 20)}[damage]
    kernel = tmp_path / "kernel"
    kernel.write_bytes(content)
    runtime.before = settings(tmp_path / "c.toml", kernel=str(kernel), boot_timeout_s=15)
    line = refused(runtime, watch, bundle(tmp_path / "bundle"))
    assert "the virtual machine failed (QEMU exit status 1) during: " in line
    assert "qemu said: " in line


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_an_initrd_that_is_none_is_a_panic_with_the_kernels_last_words(
    damage: str, runtime: Runtime, watch: Watch, guest_image: ImageRef, tmp_path: Path
) -> None:
    with open(guest_image.initrd, "rb") as file:
        content = b"" if damage == "empty" else file.read(1 << 20)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(content)
    runtime.before = settings(tmp_path / "c.toml", initrd=str(initrd), boot_timeout_s=60)
    line = refused(runtime, watch, bundle(tmp_path / "bundle"))
    # the stock kernel has no driver yet by which it could tell of its panic; it is built into the lean one
    lean = store.read_manifest(guest_image.directory)["recipe"] == "lean"
    how = "ended with a guest kernel panic" if lean else "was reset by its guest (a kernel panic or a reboot)"
    assert f"{how} during: boot the guest; last console lines: " in line
    assert "Kernel panic - not syncing" in line


def damaged_store(directory: Path, image: ImageRef, damage: str) -> Path:
    """A store whose current image is a copy of `image` with one file cut or gone."""
    copy = directory / image.digest
    shutil.copytree(image.directory, copy)
    (directory / "index.json").write_text(json.dumps({"current": image.digest}))
    if damage == "cut":
        os.truncate(copy / "initrd", 1000)
    elif damage == "flipped":
        with (copy / "initrd").open("r+b") as file:  # of the same size
            file.seek(-100, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-100, os.SEEK_END)
            file.write(bytes([byte ^ 1]))
    else:
        (copy / damage).unlink()
    return copy


@pytest.mark.parametrize("damage", ["cut", "flipped", "vmlinux", "manifest.json"])
def test_a_damaged_image_is_told_before_anything_starts(
    damage: str, runtime: Runtime, watch: Watch, guest_image: ImageRef, tmp_path: Path
) -> None:
    copy = damaged_store(tmp_path / "store", guest_image, damage)
    chosen = {"image": str(copy)} if damage == "flipped" else {}  # else a store would repair itself
    runtime.before = settings(tmp_path / "c.toml", image_store=str(tmp_path / "store"), **chosen)
    line = refused(runtime, watch, bundle(tmp_path / "bundle"))
    file = copy / ("initrd" if damage in ("cut", "flipped") else damage)
    assert line == f"bufferzone: the guest image is damaged: {file} (hint: run: bz setup)"


def test_a_missing_image_is_told_before_anything_starts(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    runtime.before = settings(tmp_path / "c.toml", image_store="/nonexistent")
    line = refused(runtime, watch, bundle(tmp_path / "bundle"))
    assert line == "bufferzone: no guest image in /nonexistent (hint: run: bz setup)"


def test_missing_programs_are_named(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    runtime.before = private.words(hide=(QEMU,))
    wanted = "bufferzone: program not found: qemu-system-x86_64 (hint: apt-get install qemu-system-x86)"
    assert refused(runtime, watch, made) == wanted
    there = {os.path.realpath(path) for path in VIRTIOFSD if os.path.exists(path)}
    runtime.before = private.words(hide=tuple(sorted(there)))
    assert refused(runtime, watch, made).startswith("bufferzone: program not found: virtiofsd (hint: apt-get")


def test_firecracker_without_usable_kvm_is_one_line_that_names_qemu(
    runtime: Runtime, watch: Watch, tmp_path: Path, guest_image: ImageRef
) -> None:
    if kvm.probe().usable:
        pytest.skip("there is usable KVM")
    rows = {"vmm": "firecracker", "kvm": "allow", "image": guest_image.directory}
    runtime.before = settings(tmp_path / "config.toml", **rows)
    line = refused(runtime, watch, bundle(tmp_path / "bundle"))
    assert line.startswith("bufferzone: Firecracker runs with KVM alone: ")
    assert line.endswith("(hint: vmm = qemu runs without)")


def test_a_guest_kernel_without_a_vsock_says_so_where_that_is_the_channel(
    runtime: Runtime, watch: Watch, tmp_path: Path, guest_image: ImageRef
) -> None:
    # as Firecracker's driver has it; of QEMU this machine has no vsock
    rows = {"image": guest_image.directory, "kernel_arguments": [CHANNEL_IS_VSOCK], "templates": False}
    runtime.before = settings(tmp_path / "config.toml", **rows)
    line = refused(runtime, watch, bundle(tmp_path / "bundle"))
    assert "this kernel has no vsock (VIRTIO_VSOCKETS)" in line
