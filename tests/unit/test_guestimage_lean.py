"""The lean guest without compiling it: its options, its source, what is told meanwhile, what is kept."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.guestimage import apt, compiler, lean, lean_options, lean_source, rootfs
from bufferzone.guestimage.recipe import Kernel

SOURCE = apt.Package(
    name="linux-source-6.12",
    version="6.12.1-1",
    file="linux-source-6.12_6.12.1-1_all.deb",
    size=1,
    sha256="a" * 64,
)
CONFIG = lean_options.fragment()
MADE = Kernel(
    release="6.12.1-bufferzone",
    vmlinux=b"vmlinux",
    config=CONFIG.encode(),
    builtin=frozenset({"fuse"}),
    facts={"symbols": 3},
)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is unpacked or compiled; the list has the options of each time something would have been."""
    times: list[str] = []

    def compile_kernel(tree: str, options: str, progress: apt.Progress) -> Kernel:
        times.append(options)
        return MADE

    monkeypatch.setattr(lean_source, "unpack", lambda package, cache, tree: None)
    monkeypatch.setattr(compiler, "compile_kernel", compile_kernel)
    monkeypatch.setattr(compiler, "check_tools", lambda: None)
    return times


def test_every_option_has_a_reason_and_is_named_once() -> None:
    names = []
    for reason, options in lean_options.ROWS:
        assert len(reason) > 4, options
        for option in options.split():
            assert re.fullmatch(r'[A-Z0-9_]+(=(n|\d+|0x[0-9a-f]+|"[^"]*"))?', option), option
            names.append(option.partition("=")[0])
    assert len(names) == len(set(names))


def test_what_a_guest_must_not_have_is_in_no_row() -> None:
    names = {option.partition("=")[0] for _, options in lean_options.ROWS for option in options.split()}
    unwanted = {"MODULES", "FTRACE", "KPROBES", "AUDIT", "IO_URING", "IA32_EMULATION", "DEVMEM", "KALLSYMS"}
    assert not names & unwanted
    assert not [name for name in names if name.startswith(("INPUT", "USB", "SERIO", "ATA", "SCSI"))]


def test_the_fragment_has_each_reason_above_its_options() -> None:
    lines = CONFIG.splitlines()
    at = lines.index("CONFIG_SECCOMP_FILTER=y")
    assert lines[at - 1] == "CONFIG_SECCOMP=y"
    assert lines[at - 2].startswith("# filters of system calls")
    assert "# CONFIG_ZONE_DMA is not set" in lines
    assert "CONFIG_NR_CPUS=64" in lines


def test_an_option_that_kconfig_did_not_take_is_found() -> None:
    assert lean_options.lost(CONFIG) == []
    without = CONFIG.replace("CONFIG_VIRTIO_FS=y\n", "").replace("CONFIG_NR_CPUS=64", "CONFIG_NR_CPUS=8")
    assert lean_options.lost(without) == ["NR_CPUS=64", "VIRTIO_FS"]
    on = CONFIG.replace("# CONFIG_ZONE_DMA is not set", "CONFIG_ZONE_DMA=y")
    assert lean_options.lost(on) == ["ZONE_DMA=n"]


def test_a_kernel_is_compiled_once_for_its_source_and_options(tmp_path: Path, compiled: list[str]) -> None:
    recipe = lean.Lean()
    assert not recipe.is_ready([SOURCE], str(tmp_path))
    assert recipe.kernel([SOURCE], str(tmp_path), quiet) == MADE
    assert recipe.kernel([SOURCE], str(tmp_path), quiet) == MADE
    assert recipe.is_ready([SOURCE], str(tmp_path))
    assert compiled == [CONFIG]


def test_another_source_or_option_is_another_kernel(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = lean.Lean()
    recipe.kernel([SOURCE], str(tmp_path), quiet)
    newer = apt.Package(**{**{name: getattr(SOURCE, name) for name in SOURCE.__slots__}, "sha256": "b" * 64})
    assert not recipe.is_ready([newer], str(tmp_path))
    recipe.kernel([newer], str(tmp_path), quiet)
    assert len(os.listdir(tmp_path)) == 1  # the older one has gone
    monkeypatch.setattr(lean_options, "ROWS", (*lean_options.ROWS, ("a test", "ANOTHER=7")))
    assert not recipe.is_ready([newer], str(tmp_path))


def test_a_damaged_kernel_is_compiled_again(tmp_path: Path, compiled: list[str]) -> None:
    recipe = lean.Lean()
    recipe.kernel([SOURCE], str(tmp_path), quiet)
    (place,) = tmp_path.iterdir()
    (place / "vmlinux").write_bytes(b"vmlinuy")
    assert recipe.kernel([SOURCE], str(tmp_path), quiet) == MADE
    assert len(compiled) == 2
    assert (place / "vmlinux").read_bytes() == b"vmlinux"
    assert list(tmp_path.iterdir()) == [place]


def test_a_lost_option_fails_by_its_name_and_keeps_nothing(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean_options, "ROWS", (*lean_options.ROWS, ("a test", "NO_SUCH_THING")))
    with pytest.raises(
        HostError, match=r"linux-source-6\.12 does not take these options: NO_SUCH_THING"
    ) as caught:
        lean.Lean().kernel([SOURCE], str(tmp_path), quiet)
    assert caught.value.code == "kernel-option-lost"
    assert list(tmp_path.iterdir()) == []


def test_missing_tools_are_one_line_before_anything_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = {"/nonexistent/gelf.h": "libelf-dev", "no-such-flex": "flex", "no-such-lex": "flex", "/": "base"}
    monkeypatch.setattr(compiler, "TOOLS", tools)
    with pytest.raises(HostError, match="compiling a kernel needs libelf-dev flex") as caught:
        lean.Lean().kernel([SOURCE], str(tmp_path), quiet)
    assert caught.value.hint == "run: apt-get install libelf-dev flex"
    assert list(tmp_path.iterdir()) == []


def test_a_release_without_the_source_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(names: list[str]) -> list[apt.Package]:
        raise HostError("E: Unable to locate package", code="package-unknown")

    monkeypatch.setattr(apt, "resolve", resolve)
    with pytest.raises(HostError, match=r"apt offers no linux-source-6\.12") as caught:
        lean.Lean().kernel_packages()
    assert "security archive" in caught.value.hint


def archive_of(names: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"linux-source-6.12/{name}")
            member.size, member.mode = len(name), 0o755
            archive.addfile(member, io.BytesIO(name.encode()))
    return out.getvalue()


def test_of_the_source_only_what_is_compiled_or_configured_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ["Makefile", "arch/arm/crypto/Kconfig", "arch/x86/kernel/head_64.S", "drivers/virtio/virtio.c"]
    kept += ["drivers/gpu/drm/Kconfig", "sound/Makefile", "scripts/setlocalversion"]
    dropped = [
        "arch/arm/kernel/head.S",
        "drivers/gpu/drm/drm_file.c",
        "sound/core/pcm.c",
        "Documentation/x.rst",
    ]
    member = tarfile.TarInfo("/usr/src/linux-source-6.12.tar.xz")
    monkeypatch.setattr(apt, "contents", lambda *_: iter([(member, archive_of([*kept, *dropped]))]))
    lean_source.unpack(SOURCE, "", str(tmp_path))
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(kept)
    assert os.access(tmp_path / "scripts/setlocalversion", os.X_OK)


def test_a_source_package_that_is_cut_short_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = tarfile.TarInfo("/usr/src/linux-source-6.12.tar.xz")
    monkeypatch.setattr(apt, "contents", lambda *_: iter([(member, archive_of(["Makefile"])[:40])]))
    with pytest.raises(HostError, match="is unreadable") as caught:
        lean_source.unpack(SOURCE, "", str(tmp_path))
    assert caught.value.code == "package-damaged"


def test_make_is_followed_with_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("include/config/kernel.release", "6.12.1-bufferzone\n"),
        ("stripped", "elf"),
        (".config", CONFIG),
        ("modules.builtin", "kernel/fs/fuse/fuse.ko\nkernel/drivers/virtio/virtio_pci.ko\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    names = "0 T __x64_sys_read\n0 T __x64_sys_write\n0 t __se_sys_write\n0 W __x64_sys_ni_syscall\n"
    monkeypatch.setattr(apt, "run", lambda argv, **_: names if argv[0] == "nm" else "gcc 12\nmore\n")
    monkeypatch.setattr(apt, "lines", lambda *_, **__: iter(["  CC      a.o\n", "  LD      b.o\n"] * 40))
    monkeypatch.setattr(compiler, "_EVERY_S", 0.0)
    told: list[str] = []
    made = compiler.compile_kernel(str(tmp_path), "CONFIG_X=y\n", told.append)
    assert (tmp_path / "wanted").read_text() == "CONFIG_X=y\n"
    assert made.builtin == {"fuse", "virtio_pci"}
    assert made.facts == {"symbols": 4, "system_calls": 2, "compiler": "gcc 12"}
    assert made.release == "6.12.1-bufferzone"
    assert any(re.search(r"40 of about \d+ files, \d+ s left", line) for line in told)
    assert any(re.search(r" 3 of about \d+ files$", line) for line in told), "an estimate by three files"


def test_lines_of_a_program_come_as_it_says_them_and_its_error_is_the_first_it_told(tmp_path: Path) -> None:
    said = "import sys; print('one', flush=True); print('two'); "
    fail = "sys.stderr.write('warning: x\\nfile.c:1: error: no such header\\nmake: stopped\\n'); sys.exit(2)"
    argv, where = [sys.executable, "-c"], {"cwd": str(tmp_path), "env": {}}
    assert list(apt.lines([*argv, said], **where)) == ["one\n", "two\n"]
    found = []
    with pytest.raises(HostError, match=r"failed: file.c:1: error: no such header$"):
        found.extend(apt.lines([*argv, said + fail], **where))


def test_a_kernel_without_modules_gets_no_modprobe_but_must_have_them_built_in() -> None:
    names = (*rootfs.BOOT_MODULES, *rootfs.OPTIONAL_MODULES)
    whole = Kernel(release="1", vmlinux=b"", config=b"", builtin=frozenset(names))
    entries = {entry.path: entry.data for entry in rootfs.of_kernel(whole)}
    assert b"modprobe" not in entries["/init"]
    assert set(entries) == {"/init", "/etc/bufferzone/modules", "/etc/bufferzone/modules.dep"}
    part = Kernel(release="1", vmlinux=b"", config=b"", builtin=frozenset(names) - {"virtiofs"})
    with pytest.raises(HostError, match="the kernel has no module virtiofs"):
        rootfs.of_kernel(part)


def test_a_kernel_that_a_package_brought_needs_no_source_and_no_compiler(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, packaged = tmp_path / "cache", tmp_path / "packaged"
    cache.mkdir()
    monkeypatch.setattr(lean, "PACKAGED", str(packaged))
    recipe = lean.Lean()
    with pytest.raises(HostError, match="no lean kernel was compiled here"):
        lean.compiled(str(cache), [SOURCE])
    recipe.kernel([SOURCE], str(cache), quiet)
    version, files = lean.compiled(str(cache), [SOURCE])
    assert version == SOURCE.version
    assert recipe.more_inputs([SOURCE]) == []
    for path, data in files.items():
        (packaged / path).parent.mkdir(parents=True, exist_ok=True)
        (packaged / path).write_bytes(data)
    assert recipe.kernel_packages() == []
    assert recipe.is_ready([], str(cache))
    assert recipe.kernel([], str(cache), quiet) == MADE
    assert len(compiled) == 1
    assert recipe.more_inputs([]) == [hashlib.sha256(MADE.vmlinux).hexdigest()]
    monkeypatch.setattr(lean_options, "ROWS", (*lean_options.ROWS, ("a test", "ANOTHER=7")))
    assert not recipe.is_ready([], str(cache))  # it has been compiled with other options
    with pytest.raises(HostError, match="damaged") as caught:
        recipe.kernel([], str(cache), quiet)
    assert "--upgrade" in (caught.value.hint or "")
