"""Does KVM work here? Found out by running a few thousand instructions in long mode and timing them.

/dev/kvm and CPU flags are no answer: there are paravirtual KVMs that open, create VMs, and then interpret the
guest at a fraction of the speed and fail at instructions they do not know. The probe runs in a child that is
killed after `TIMEOUT_S`, so that a hanging ioctl hurts nobody. Numbers are from linux/kvm.h, x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import struct
import time

from bufferzone.linux.ignoring import ignoring
from bufferzone.record import Record

TIMEOUT_S = 5.0
#: rounds of the loop (three instructions each), and what they may take, in times that Python needs for as
#: many: hardware needs 0.05 of it, an interpreter was seen to need 100, the KVM of an emulated host 0.3. Both
#: are CPU time of one thread, for a busy host runs others too, and taken in turn, for a host may itself be a
#: slow VM, or one that waits: by the clock such a host had no KVM until its next boot. The best of a few
#: attempts counts.
ROUNDS = 100_000
LIMIT = 4.0
ATTEMPTS = 3

#: the modules that are KVM: the processor's own, and one for guest kernels that are built for it
_MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")
_GET_API_VERSION, _CREATE_VM, _GET_VCPU_MMAP_SIZE, _CREATE_VCPU = 0xAE00, 0xAE01, 0xAE04, 0xAE41
_SET_USER_MEMORY_REGION, _RUN = 0x4020AE46, 0xAE80
_GET_REGS, _SET_REGS, _GET_SREGS, _SET_SREGS = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84
_GET_SUPPORTED_CPUID, _SET_CPUID2 = 0xC008AE05, 0x4008AE90
_EXIT_REASONS = {1: "exception", 2: "io", 5: "hlt", 8: "shutdown", 9: "fail entry", 17: "internal error"}
_EXIT_IO, _EXIT_HLT = 2, 5
_PORT, _CODE, _STACK, _PML4, _PDPT, _PD = 0x5A, 0x1000, 0x8000, 0x2000, 0x3000, 0x4000
_MEMORY = 0x10000
#   mov ecx, ROUNDS; xor rax, rax; 1: add rax, 3; dec ecx; jnz 1b; out 0x5a, al; hlt
_PROGRAM = (
    b"\xb9"
    + struct.pack("<I", ROUNDS)
    + b"\x48\x31\xc0"
    + b"\x48\x83\xc0\x03\xff\xc9\x75\xf8"
    + b"\xe6\x5a"
    + b"\xf4"
)


class Probe(Record):
    """The finding: `reason` says why not (empty if usable), `milliseconds` what the loop took (None: never
    ended)."""

    usable: bool
    reason: str = ""
    milliseconds: float | None = None


def probe(device: str = "/dev/kvm") -> Probe:
    """Run the test now, in a child; takes at most `TIMEOUT_S` and a little. Never raises for what KVM
    does."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(_best_attempt(device)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        answered = poller.poll(TIMEOUT_S * 1000)
        raw = os.read(reader, 4096) if answered else b""
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not answered:
        endless = f"a loop of {ROUNDS} rounds did not end within {TIMEOUT_S:g} s"
        return Probe(usable=False, reason=_named(endless))
    if not raw:
        return Probe(usable=False, reason="the probe crashed")
    reason, milliseconds = json.loads(raw)
    return Probe(usable=not reason, reason=reason, milliseconds=milliseconds)


def cached_probe(cache_path: str, device: str = "/dev/kvm") -> Probe:
    """The finding of this boot, kernel and device from `cache_path`, else a new one, which is written there.

    A cache that cannot be read or written costs time and nothing else.
    """
    key = _key(device)
    try:
        with open(cache_path, "rb") as file:
            kept = json.loads(file.read(4096))
        if kept["key"] == key:
            return Probe(
                usable=bool(kept["usable"]), reason=str(kept["reason"]), milliseconds=kept["milliseconds"]
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or not ours: it is found out anew
    found = probe(device)
    content = {"key": key, "usable": found.usable, "reason": found.reason, "milliseconds": found.milliseconds}
    temporary = f"{cache_path}.{os.getpid()}"
    try:
        with open(temporary, "x") as file:
            json.dump(content, file)
        os.replace(temporary, cache_path)
    except OSError:  # a full disk takes the name and refuses the text; a read-only one has no such name
        with ignoring(errno.ENOENT, errno.EACCES, errno.EROFS):
            os.unlink(temporary)
    return found


def _key(device: str) -> list[object]:
    """What a finding depends on: this boot, the kernel, the device node, whether we may open it, and how it
    was judged, for another version may judge otherwise.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    try:
        number = os.stat(device).st_rdev
    except OSError:
        number = 0
    return [boot, os.uname().release, device, number, _opens(device), _modules(), [ROUNDS, LIMIT]]


def _opens(device: str) -> bool:
    """A node outlives its module, and says nothing of the LSM: only opening it tells."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _modules() -> list[str]:
    return [name for name in _MODULES if os.path.isdir(f"/sys/module/{name}")]


def _best_attempt(device: str) -> tuple[str, float | None]:
    for _ in range(ATTEMPTS):
        reason, milliseconds = _attempt(device)
        if milliseconds is None or not reason:
            break
    return (reason if milliseconds is None else _named(reason)), milliseconds


def _named(reason: str) -> str:
    """With the name of a KVM that would run no guest of ours, whatever the loop said."""
    if _modules() != ["kvm_pvm"]:
        return reason
    pvm = "it is PVM (kvm_pvm), which is for guest kernels built for it"
    return f"{reason}; {pvm}" if reason else pvm


def _attempt(device: str) -> tuple[str, float | None]:
    """Returns the reason (empty: usable) and the milliseconds measured."""
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"cannot open {device}: {_why_closed(device, error)}", None
    try:
        version = fcntl.ioctl(kvm, _GET_API_VERSION)
        if version != 12:
            return f"KVM API version is {version}, not 12", None
        return _run(kvm)
    except OSError as error:
        return f"KVM refused to run a guest: {error.strerror}", None


def _why_closed(device: str, error: OSError) -> str:
    text = (error.strerror or "").lower()
    if error.errno == errno.ENOENT and not _modules():
        return f"{text}: neither kvm_intel nor kvm_amd is loaded"
    if error.errno in (errno.EACCES, errno.EPERM):
        with ignoring(errno.ENOENT, errno.EACCES):
            node = os.stat(device)
            return f"{text}: it is for group {_group(node.st_gid)}, mode {node.st_mode & 0o777:o}"
    return text


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _run(kvm: int) -> tuple[str, float | None]:
    vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _MEMORY)
    _fill(memory)
    # the address of the mapping, which `mmap` objects do not tell
    address = _address(memory)
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, _MEMORY, address))
    vcpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE))
    _copy_cpuid(kvm, vcpu)
    _enter_long_mode(vcpu)
    limit = LIMIT * _pace()
    began = time.thread_time()
    reason = _step(vcpu, run, _EXIT_IO)
    took = (time.thread_time() - began) * 1000
    if reason:
        return reason, round(took, 3)
    rax = struct.unpack_from("=Q", fcntl.ioctl(vcpu, _GET_REGS, bytes(144)))[0]
    if rax != 3 * ROUNDS:
        return f"a loop of {ROUNDS} rounds computed {rax} instead of {3 * ROUNDS}", round(took, 3)
    if reason := _step(vcpu, run, _EXIT_HLT):
        return reason, round(took, 3)
    return _verdict(took, limit), round(took, 3)


def _pace() -> float:
    """Milliseconds of CPU time that Python takes here and now for as many rounds."""
    began = time.thread_time()
    for _ in range(ROUNDS):
        pass
    return (time.thread_time() - began) * 1000


def _verdict(took: float, limit: float) -> str:
    if took <= limit:
        return ""
    return f"a loop of {ROUNDS} rounds took {took:.1f} ms, the limit is {limit:.1f}: it is interpreted"


def _step(vcpu: int, run: mmap.mmap, expected: int) -> str:
    """KVM_RUN until `expected`; returns what went wrong. exit_reason is at offset 8 of struct kvm_run."""
    fcntl.ioctl(vcpu, _RUN, 0)
    found = struct.unpack_from("=I", run, 8)[0]
    if found == expected:
        return ""
    return f"the guest stopped with {_EXIT_REASONS.get(found, found)} instead of {_EXIT_REASONS[expected]}"


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _fill(memory: mmap.mmap) -> None:
    """Code, and page tables that map the first 2 MiB onto themselves: present, writable; the last level is
    large."""
    memory[_CODE : _CODE + len(_PROGRAM)] = _PROGRAM
    for table, value in ((_PML4, _PDPT | 3), (_PDPT, _PD | 3), (_PD, 0x83)):
        memory[table : table + 8] = struct.pack("=Q", value)


def _copy_cpuid(kvm: int, vcpu: int) -> None:
    """Give the guest the CPU that KVM can give: without it long mode is not a feature of the virtual CPU."""
    entries = 100
    buffer = bytearray(struct.pack("=II", entries, 0) + bytes(40 * entries))
    fcntl.ioctl(kvm, _GET_SUPPORTED_CPUID, buffer)
    fcntl.ioctl(vcpu, _SET_CPUID2, buffer)


def _enter_long_mode(vcpu: int) -> None:
    """struct kvm_sregs: 8 segments of 24 bytes, gdt, idt (16 each), cr0 cr2 cr3 cr4 cr8 efer apic_base,
    bitmap."""
    sregs = bytearray(fcntl.ioctl(vcpu, _GET_SREGS, bytes(312)))
    for index in range(6):  # cs ds es fs gs ss
        code = index == 0
        segment = struct.pack(
            "=QIHBBBBBBBBBB",
            0,
            0xFFFFFFFF,
            8 if code else 16,
            11 if code else 3,
            1,
            0,
            0 if code else 1,
            1,
            1 if code else 0,
            1,
            0,
            0,
            0,
        )
        sregs[24 * index : 24 * index + 24] = segment
    cr0, cr4, efer = 0x80000033, 0x20, 0x500  # PG NE ET MP PE; PAE; LMA LME
    struct.pack_into("=4Q", sregs, 224, cr0, 0, _PML4, cr4)
    struct.pack_into("=Q", sregs, 264, efer)
    fcntl.ioctl(vcpu, _SET_SREGS, bytes(sregs))
    # struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
    regs = [0] * 18
    regs[6], regs[16], regs[17] = _STACK, _CODE, 2
    fcntl.ioctl(vcpu, _SET_REGS, struct.pack("=18Q", *regs))
