"""linux.resources.devices as a program that the guest's cgroup runs at each open and mknod. Pure.

What the rules mean is cgroup v1's, as runc keeps it on v2: a later rule wins; what no rule allows is denied;
after the caller's rules come those of the devices that every container has. A list that ends up allowing all
needs no program. Source: Documentation/admin-guide/cgroup-v1/devices.rst, runc libcontainer/cgroups/devices,
include/uapi/linux/bpf.h (struct bpf_cgroup_dev_ctx).
"""

from __future__ import annotations

import struct

from bufferzone.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    #: allowed, type (0: any), major and minor (-1: any), access
    Rule = tuple[bool, int, int, int, int]

_BLOCK, _CHAR = 1, 2
_MKNOD, _READ, _WRITE = 1, 2, 4
_ALL = _MKNOD | _READ | _WRITE
_TYPES = {"": 0, "a": 0, "b": _BLOCK, "c": _CHAR, "u": _CHAR}
_ACCESS = {"m": _MKNOD, "r": _READ, "w": _WRITE}
#: nodes may be made; null, zero, full, tty, urandom, random, console, ptmx, the pseudo-terminals
_EVERYBODYS: tuple[Rule, ...] = (
    (True, _CHAR, -1, -1, _MKNOD),
    (True, _BLOCK, -1, -1, _MKNOD),
    *((True, _CHAR, major, minor, _ALL) for major, minor in ((1, 3), (1, 5), (1, 7), (5, 0), (1, 9), (1, 8))),
    (True, _CHAR, 5, 1, _ALL),
    (True, _CHAR, 5, 2, _ALL),
    (True, _CHAR, 136, -1, _ALL),
)
_MOST = (1 << 31) - 1

_pack = struct.Struct("<BBhi").pack
# of the context in r1: type in r2, access that nobody has decided on yet in r3, major in r4, minor in r5
_HEAD = b"".join(
    (
        _pack(0x61, 0x12, 0, 0),  # r2 = *(u32 *)(r1 + 0)
        _pack(0xBF, 0x23, 0, 0),  # r3 = r2
        _pack(0x77, 0x03, 0, 16),  # r3 >>= 16
        _pack(0x57, 0x02, 0, 0xFFFF),  # r2 &= 0xffff
        _pack(0x61, 0x14, 4, 0),  # r4 = *(u32 *)(r1 + 4)
        _pack(0x61, 0x15, 8, 0),  # r5 = *(u32 *)(r1 + 8)
    )
)
_ANSWER = {allow: _pack(0xB7, 0x00, 0, int(allow)) + _pack(0x95, 0, 0, 0) for allow in (False, True)}

#: what takes the place of a program once all is allowed
ALLOW_ALL = _ANSWER[True]


def program(rules: list[dict[str, Any]]) -> bytes:
    """The instructions for a container's rules; empty where there are none, or all devices are allowed.

    Raises `SpecError` for a rule that means nothing.
    """
    if not rules:
        return b""
    parsed = [_parse(index, rule) for index, rule in enumerate(rules)]
    last = max((at for at, rule in enumerate(parsed) if _is_about_all(rule)), default=-1)
    if last >= 0 and parsed[last][0] and all(rule[0] for rule in parsed[last:]):
        return b""
    parts = [_HEAD]
    for rule in reversed((*parsed, *_EVERYBODYS)):
        parts.append(_decide(rule))
        if _is_about_all(rule):
            return b"".join(parts)  # the kernel refuses what can never be reached
    return b"".join((*parts, _ANSWER[False]))


def _parse(index: int, rule: dict[str, Any]) -> Rule:
    kind, access = str(rule.get("type") or ""), str(rule.get("access") or "rwm")
    where = f"linux.resources.devices[{index}]"
    if kind not in _TYPES:
        raise SpecError(f"{where}.type: unknown: {kind[:20]!a}")
    numbers = []
    for key in ("major", "minor"):
        value = rule.get(key)
        number = -1 if value is None else int(value)
        if not -1 <= number <= _MOST:
            raise SpecError(f"{where}.{key}: no device has this number: {number}")
        numbers.append(number)
    bits = 0
    for letter in access:
        bits |= _ACCESS.get(letter, 0)  # what is none of rwm means nothing, as with runc
    return bool(rule.get("allow")), _TYPES[kind], numbers[0], numbers[1], bits


def _is_about_all(rule: Rule) -> bool:
    return rule[1:] == (0, -1, -1, _ALL)


def _decide(rule: Rule) -> bytes:
    """Tests, each of which leads past the rule; then what is left of the access is allowed or denied."""
    allow, kind, major, minor, access = rule
    answer = _ANSWER[allow]
    if access == _ALL:
        then = answer
    elif allow:
        then = _pack(0x57, 0x03, 0, ~access) + _pack(0x55, 0x03, 2, 0) + answer  # r3 &= ~access; done if none
    else:
        # r0 = r3 & access: one that is asked for and denied denies the whole
        then = _pack(0xBF, 0x30, 0, 0) + _pack(0x57, 0x00, 0, access) + _pack(0x15, 0x00, 2, 0) + answer
    tests = [(register, value) for register, value in ((2, kind or -1), (4, major), (5, minor)) if value >= 0]
    left = len(then) // 8 + len(tests)
    found = []
    for register, value in tests:
        left -= 1
        found.append(_pack(0x55, register, left, value))  # if it is not this one: the next rule
    return b"".join((*found, then))
