"""The deny list of helpers, run in a small interpreter of classic BPF."""

import struct

import pytest

from bufferzone.linux.denylist import DENIED, program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
X86_64 = 0xC000003E


def run(number: int, first_argument: int = 0, architecture: int = X86_64) -> int:
    code = program()
    lines = [struct.unpack_from("=HBBI", code, offset) for offset in range(0, len(code), 8)]
    memory = {0: number, 4: architecture, 16: first_argument}
    accumulator, at = 0, 0
    while True:
        opcode, yes, no, operand = lines[at]
        at += 1
        if opcode == 0x20:
            accumulator = memory[operand]
        elif opcode == 0x06:
            return int(operand)
        else:
            truth = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }[opcode]
            at += yes if truth else no


def test_exactly_the_listed_calls_are_refused() -> None:
    refused = [number for number in range(500) if run(number) == EPERM]
    assert refused == sorted(DENIED.values())


@pytest.mark.parametrize("number", [56, 272])
def test_clone_and_unshare_are_refused_only_when_they_make_a_namespace(number: int) -> None:
    assert run(number, 0x3D0F00) == ALLOW  # a thread, as glibc makes one
    assert run(number, 0x200) == ALLOW  # CLONE_FS
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(number, flag) == EPERM


def test_clone3_does_not_exist() -> None:
    assert run(435) == ENOSYS


def test_other_system_call_tables_kill() -> None:
    assert run(0x40000000 + 1) == KILL
    assert run(1, architecture=0x40000003) == KILL
