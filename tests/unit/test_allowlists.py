"""The allow-lists of helpers, run in a small interpreter of classic BPF, and in real processes."""

import ctypes
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bufferzone import allowlists
from bufferzone.linux import allowlist, process
from bufferzone.linux.allowlist import AllowList
from bufferzone.linux.syscalls import NUMBERS, name_of
from bufferzone.shim import rights

ALLOW, KILL, ENOSYS = 0x7FFF0000, 0x80000000, 0x50026
X86_64 = 0xC000003E
MMAP, MPROTECT, CLONE, IOCTL, SOCKET, EXECVE = (
    NUMBERS[name] for name in ("mmap", "mprotect", "clone", "ioctl", "socket", "execve")
)
EVERY = pytest.mark.parametrize("allowed", allowlists.ALL, ids=lambda allowed: allowed.name)


def run(code: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    lines = [struct.unpack_from("=HBBI", code, offset) for offset in range(0, len(code), 8)]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, at = 0, 0
    while True:
        opcode, yes, no, operand = lines[at]
        at += 1
        if opcode == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif opcode == 0x54:
            accumulator &= operand
        elif opcode == 0x05:
            at += operand
        elif opcode == 0x06:
            return int(operand)
        else:
            at += yes if {0x15: accumulator == operand, 0x35: accumulator >= operand}[opcode] else no


@EVERY
def test_exactly_the_listed_calls_go_through(allowed: AllowList) -> None:
    code = allowlist.program(allowed)
    whole = {
        name for name, number in NUMBERS.items() if run(code, number, *[-1 & (1 << 64) - 1] * 6) == ALLOW
    }
    assert allowed.calls - allowed.limited.keys() == whole - allowlists.QUIET.keys()
    other = allowlist.quiet_program(allowed)
    assert {name for name, number in NUMBERS.items() if run(other, number) == ENOSYS} == set(allowlists.QUIET)
    killed = {name for name, number in NUMBERS.items() if run(code, number) == KILL}
    assert killed == allowed.forbidden
    assert run(code, 500) == ENOSYS


@EVERY
def test_other_system_call_tables_kill(allowed: AllowList) -> None:
    code = allowlist.program(allowed)
    assert run(code, 0x40000000 + 1) == KILL
    assert run(code, 1, architecture=0x40000003) == KILL


@EVERY
def test_threads_are_made_and_neither_processes_nor_namespaces(allowed: AllowList) -> None:
    code = allowlist.program(allowed)
    if allowed is not allowlists.PASST:
        assert run(code, CLONE, 0x3D0F00) == ALLOW  # a thread, as glibc makes one
    assert run(code, CLONE, 0x1200011) == ENOSYS  # a process, as fork makes one
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(code, CLONE, 0x3D0F00 | flag) == ENOSYS
        if allowed is not allowlists.PASST:  # which leaves for namespaces of its own
            assert run(code, NUMBERS["unshare"], flag) == ENOSYS


@EVERY
def test_no_memory_that_can_be_written_becomes_code_but_for_a_translator(allowed: AllowList) -> None:
    code = allowlist.program(allowed)
    translates = ALLOW if allowed is allowlists.VMM_TCG else ENOSYS
    assert run(code, MMAP, 0, 4096, 5, 0x2) == ALLOW  # as the loader maps a library
    assert run(code, MMAP, 0, 4096, 3, 0x22) == ALLOW
    assert run(code, MMAP, 0, 4096, 7, 0x2) == translates
    assert run(code, MMAP, 0, 4096, 5, 0x22) == translates
    assert run(code, MPROTECT, 0, 4096, 5) == translates


def test_qemu_may_ask_a_tap_what_it_is_and_not_make_it_another() -> None:
    for allowed in (allowlists.VMM_TCG, allowlists.VMM_KVM):
        code = allowlist.program(allowed)
        assert run(code, IOCTL, 9, 0x800454D2) == ALLOW  # TUNGETIFF
        for request in (0x400454CA, 0x400454CB, 0x400454CC, 0x401054D5, 0x800454E0, 0x8914):
            assert run(code, IOCTL, 9, request) == ENOSYS  # TUNSETIFF ... SIOCSIFFLAGS
        kvm = ALLOW if allowed is allowlists.VMM_KVM else ENOSYS
        assert run(code, IOCTL, 9, 0xAE80) == kvm  # KVM_RUN
        assert run(code, IOCTL, 9, 0x4090AE82) == kvm  # KVM_SET_REGS


def test_the_rust_virtiofsd_may_ask_what_kind_of_socket_it_was_given_and_nothing_else() -> None:
    getsockopt, shutdown = NUMBERS["getsockopt"], NUMBERS["shutdown"]
    code = allowlist.program(allowlists.VIRTIOFSD_RUST)
    assert [option for option in range(100) if run(code, getsockopt, 9, 1, option) == ALLOW] == [3, 39]
    for level in (0, 6, 41, 263):  # IP, TCP, IPv6, NETLINK
        assert run(code, getsockopt, 9, level, 3) == ENOSYS
    assert run(code, shutdown, 9, 2) == ALLOW
    for number in (getsockopt, shutdown):
        assert run(allowlist.program(allowlists.VIRTIOFSD_C), number, 9, 1, 3) == ENOSYS


def test_firecracker_attaches_to_a_tap_by_name_and_changes_no_interface() -> None:
    code = allowlist.program(allowlists.FIRECRACKER)
    for request in (0x400454CA, 0x400454D0, 0x400454D8, 0xAE80):  # TUNSETIFF, offloads, KVM_RUN
        assert run(code, IOCTL, 9, request) == ALLOW
    for request in (0x400454CB, 0x400454CC, 0x401054D5, 0x800454E0, 0x8914):  # TUNSETPERSIST, SIOCSIFFLAGS
        assert run(code, IOCTL, 9, request) == ENOSYS


def test_only_passt_makes_sockets_and_those_of_the_internet() -> None:
    for allowed in allowlists.ALL:
        both = allowlist.program(allowed), allowlist.quiet_program(allowed)
        passed = [n for n in range(46) if all(run(code, SOCKET, n) == ALLOW for code in both)]
        by_path = [1] if allowed is allowlists.FIRECRACKER else []  # its API, and the agent's channel
        assert passed == ([2, 10, 16] if allowed is allowlists.PASST else by_path)


def test_one_execve_goes_through_and_it_is_known_by_three_addresses() -> None:
    code = allowlist.program(allowlists.VMM_KVM, (0x123456789A, 0x2233445566, 0x3344556677))
    assert run(code, EXECVE, 0x123456789A, 0x2233445566, 0x3344556677) == ALLOW
    assert run(code, EXECVE, 0x123456789A, 0x2233445566, 0x3344556678) == ENOSYS
    assert run(code, EXECVE, 0x923456789A, 0x2233445566, 0x3344556677) == ENOSYS
    assert run(allowlist.program(allowlists.VMM_KVM), EXECVE) == ENOSYS


def in_child(code: bytes, act: Callable[[], object]) -> int:
    """How a child ends that loads the filter and acts: its result is the exit status."""
    pid = os.fork()
    if pid == 0:
        process.set_no_new_privileges()
        process.load_seccomp(code)
        os._exit(int(act()))  # type: ignore[call-overload]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@EVERY
def test_a_forbidden_call_kills_and_an_unlisted_one_does_not_exist(allowed: AllowList) -> None:
    code, libc = allowlist.program(allowed), ctypes.CDLL(None, use_errno=True)

    def refused(number: int) -> int:
        libc.syscall(number, 0, 0, 0, 0, 0, 0)
        return ctypes.get_errno()

    assert in_child(code, lambda: refused(NUMBERS["ptrace"])) == -signal.SIGSYS
    assert in_child(code, lambda: refused(NUMBERS["process_vm_writev"])) == -signal.SIGSYS
    assert in_child(code, lambda: refused(NUMBERS["fork"])) == 38  # ENOSYS


def test_names_and_numbers_are_the_kernels() -> None:
    assert (NUMBERS["read"], NUMBERS["execve"], NUMBERS["rseq"], NUMBERS["clone3"]) == (0, 59, 334, 435)
    assert (NUMBERS["open_tree_attr"], name_of(444), name_of(9999)) == (
        467,
        "landlock_create_ruleset",
        "number 9999",
    )


@EVERY
def test_security_md_tells_the_size_of_each_list(allowed: AllowList) -> None:
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    assert f"| {allowed.name} | {allowed.size} | {len(allowed.limited)} |" in page


def test_a_shim_has_every_call_but_those_it_has_no_use_for() -> None:
    code = allowlist.all_but(allowlists.NOT_FOR_A_SHIM)
    refused = {name for name, number in NUMBERS.items() if run(code, number) != ALLOW}
    assert refused == allowlists.NOT_FOR_A_SHIM
    assert run(code, max(NUMBERS.values()) + 1) == ENOSYS
    assert run(code, 1, architecture=0x40000003) == KILL
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    assert f"all calls of Linux 6.17 but {len(refused)} " in page
    assert f"user namespace only | {len(rights.KEPT)} of root's |" in page
