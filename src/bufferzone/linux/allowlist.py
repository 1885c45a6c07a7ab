"""A seccomp filter that lets through what is listed and nothing else: classic BPF, made of data.

A call in `forbidden` ends the process: no version of the program makes it. Every other call that is not
listed does not exist (ENOSYS), so that a library takes another way, and the kernel's log names it: a
program that ends for the lack of one can be explained (`linux/denial.py`). The filter is there before the
program's first instruction and in each of its threads. A call of another table (32 bits, x32) kills.

Source: seccomp(2), Linux include/uapi/linux/{seccomp,audit,bpf_common}.h.
"""

from __future__ import annotations

import struct

from bufferzone.linux.syscalls import NUMBERS
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    #: of classic BPF: (code, jump if true, jump if false, operand)
    _Line = tuple[int, int, int, int]
    #: all must hold: (index of the argument, mask, value) over its 64 bits
    Test = tuple[int, int, int]
    #: one of them must hold
    Alternatives = tuple[tuple[Test, ...], ...]

_LOAD, _AND, _EQUAL, _AT_LEAST, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x05, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_ALLOW, _KILL, _ENOSYS = 0x7FFF0000, 0x80000000, 0x50026
#: whatever the arguments are
ALWAYS = ((),)
_LOW, _ALL = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class AllowList(Record):
    """What one program may call: `calls` by name, and those of `limited` with arguments like these only.

    `name` is the program's for people. `quiet` are calls that are tried and refused each time: the log shall
    not tell of them.
    """

    name: str
    calls: frozenset[str]
    limited: Mapping[str, Alternatives]
    forbidden: frozenset[str]
    quiet: Mapping[str, Alternatives]

    @property
    def size(self) -> int:
        """How many calls it lets through, some of them in part."""
        return len(self.calls | self.limited.keys())


def one_of(index: int, values: Iterable[int]) -> Alternatives:
    """An argument of C's type int that has one of these values: the kernel looks at its lower half alone."""
    return tuple(((index, _LOW, value),) for value in values)


def program(allowed: AllowList, execute: tuple[int, ...] = ()) -> bytes:
    """The filter as an array of struct sock_filter.

    `execute`: addresses, the arguments of the one execve(2) that goes through; see `process.Execution`.
    """
    limited = dict(allowed.limited)
    if execute and "execve" not in allowed.calls:
        limited["execve"] = (tuple((index, _ALL, address) for index, address in enumerate(execute)),)
    for name, alternatives in allowed.quiet.items():  # refused by the other filter
        limited[name] = (*limited.get(name, ()), *alternatives)
    lines = [*_NATIVE_ONLY]
    for name in sorted(allowed.calls - limited.keys(), key=NUMBERS.__getitem__):
        lines += [(_EQUAL, 0, 1, NUMBERS[name]), (_RETURN, 0, 0, _ALLOW)]
    lines += _by_arguments(limited, _ALLOW, _ENOSYS)
    for name in sorted(allowed.forbidden, key=NUMBERS.__getitem__):
        lines += [(_EQUAL, 0, 1, NUMBERS[name]), (_RETURN, 0, 0, _KILL)]
    return _packed([*lines, (_RETURN, 0, 0, _ENOSYS)])


def quiet_program(allowed: AllowList) -> bytes:
    """The filter that refuses what is tried each time, to be loaded without a log."""
    return _packed([*_NATIVE_ONLY, *_by_arguments(allowed.quiet, _ENOSYS, _ALLOW), (_RETURN, 0, 0, _ALLOW)])


def all_but(names: Iterable[str]) -> bytes:
    """A filter that knows every call of our table but these: they do not exist, nor does what is newer."""
    lines = [*_NATIVE_ONLY, (_AT_LEAST, 0, 1, max(NUMBERS.values()) + 1), (_RETURN, 0, 0, _ENOSYS)]
    for name in names:
        lines += [(_EQUAL, 0, 1, NUMBERS[name]), (_RETURN, 0, 0, _ENOSYS)]
    return _packed([*lines, (_RETURN, 0, 0, _ALLOW)])


_NATIVE_ONLY = (
    (_LOAD, 0, 0, _ARCHITECTURE),
    (_EQUAL, 1, 0, _X86_64),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, _NUMBER),
    (_AT_LEAST, 0, 1, _X32_BIT),
    (_RETURN, 0, 0, _KILL),
)


def _by_arguments(rules: Mapping[str, Alternatives], holds: int, fails: int) -> list[_Line]:
    """What is answered to calls by name, when one of their alternatives holds and when none does."""
    lines: list[_Line] = []
    for name, alternatives in rules.items():
        block = [line for tests in alternatives for line in _alternative(tests, holds)]
        block.append((_RETURN, 0, 0, fails))
        lines += [(_EQUAL, 1, 0, NUMBERS[name]), (_JUMP, 0, 0, len(block)), *block]
    return lines


def _packed(lines: Iterable[_Line]) -> bytes:
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _alternative(tests: tuple[Test, ...], action: int) -> list[_Line]:
    """Answers when all tests hold, else goes on behind itself."""
    halves = []
    for index, mask, value in tests:
        for shift in (0, 32):
            if half := mask >> shift & _LOW:
                halves.append((_ARGUMENTS + 8 * index + shift // 8, half, value >> shift & _LOW))
    lines: list[_Line] = [(_RETURN, 0, 0, action)]
    for offset, mask, value in reversed(halves):
        # what is behind it so far is skipped when it does not hold
        lines.insert(0, (_EQUAL, 0, len(lines), value))
        if mask != _LOW:
            lines.insert(0, (_AND, 0, 0, mask))
        lines.insert(0, (_LOAD, 0, 0, offset))
    return lines
