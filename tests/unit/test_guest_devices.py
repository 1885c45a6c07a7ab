"""linux.resources.devices: what the program decides, in a model of the kernel's machine and in the kernel."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.container import devices
from bufferzone.errors import SpecError
from bufferzone.wire import agent as wire
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

DENY_ALL: dict[str, Any] = {"allow": False, "access": "rwm"}
BITS = {"m": 1, "r": 2, "w": 4}
TYPES = {"b": 1, "c": 2}


def run(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """What the program answers, as the kernel's machine runs it (Documentation/bpf/standardization)."""
    context = {0: access << 16 | kind, 4: major, 8: minor}
    register = [0] * 11
    code = list(struct.iter_unpack("<BBhi", program))
    at = 0
    while True:
        opcode, registers, offset, value = code[at]
        to, source = registers & 15, registers >> 4
        at += 1
        if opcode == 0x61:
            register[to] = context[offset]
        elif opcode == 0xBF:
            register[to] = register[source]
        elif opcode == 0xB7:
            register[to] = value
        elif opcode == 0x57:
            register[to] &= value
        elif opcode == 0x77:
            register[to] >>= value
        elif opcode in (0x55, 0x15):
            at += offset if (register[to] == value) == (opcode == 0x15) else 0
        else:
            assert opcode == 0x95
            return register[0]


def wanted(rules: list[dict[str, Any]], kind: str, access: set[str], major: int, minor: int) -> bool:
    """The rules read aloud: each letter that is asked for is decided by the last rule that speaks of it."""

    def last(letter: str) -> bool:
        if letter == "m":
            return True
        if kind == "c" and (major, minor) in {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}:
            return True
        if kind == "c" and major == 136:
            return True
        for rule in reversed(rules):
            if (
                rule.get("type", "a") in ("a", kind)
                and rule.get("major", major) in (-1, major)
                and rule.get("minor", minor) in (-1, minor)
                and letter in rule.get("access", "rwm")
            ):
                return bool(rule["allow"])
        return False

    return all(last(letter) for letter in access)


def some_rule(chance: random.Random) -> dict[str, Any]:
    rule: dict[str, Any] = {"allow": chance.random() < 0.5}
    if chance.random() < 0.8:
        rule["type"] = chance.choice("abc")
    for key in ("major", "minor"):
        if chance.random() < 0.7:
            rule[key] = chance.choice((-1, 0, 1, 3))
    if chance.random() < 0.7:
        rule["access"] = "".join(chance.sample("rwm", chance.randint(1, 3)))
    return rule


@pytest.mark.parametrize("seed", range(60))
def test_the_program_decides_as_the_rules_read(seed: int) -> None:
    chance = random.Random(seed)
    rules = [some_rule(chance) for _ in range(chance.randint(1, 6))]
    program = devices.program(rules)
    for kind in "bc":
        for major in (0, 1, 3, 136):
            for minor in (0, 1, 3, 9):
                for access in ("r", "w", "m", "rw", "rwm"):
                    bits = sum(BITS[letter] for letter in access)
                    found = not program or run(program, TYPES[kind], bits, major, minor)
                    assert bool(found) == wanted(rules, kind, set(access), major, minor), (rules, kind, major)


@pytest.mark.parametrize("rules", [[], [{"allow": True}], [DENY_ALL, {"allow": True, "access": "rwm"}]])
def test_where_all_is_allowed_there_is_no_program(rules: list[dict[str, Any]]) -> None:
    assert devices.program(rules) == b""


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"type": "x"}, r"devices\[0\]\.type: unknown: 'x'"),
        ({"major": 1 << 40}, r"devices\[0\]\.major: no device has this number"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(rule: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        devices.program([{"allow": True, **rule}])


def test_a_letter_that_is_no_access_means_nothing_as_by_runc() -> None:
    for allow in (False, True):
        with_it, without = ({"allow": allow, "type": "c", "access": access} for access in ("rwa", "rw"))
        assert devices.program([DENY_ALL, with_it]) == devices.program([DENY_ALL, without])


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@needs_root
def test_the_kernel_holds_to_the_rules_an_exec_too_and_an_update_changes_them(
    guest: Guest, tmp_path: Path
) -> None:
    spec = make_spec(make_rootfs(tmp_path / "rootfs"), "sleep", "1000")
    capabilities = {key: ["CAP_MKNOD"] for key in ("bounding", "effective", "permitted")}
    spec["process"]["capabilities"] = capabilities
    node = {"path": "/dev/mine", "type": "b", "major": 240, "minor": 200, "fileMode": 0o666}
    spec["linux"]["devices"] = [node]
    allow = {"allow": True, "type": "b", "major": 240, "minor": 200, "access": "r"}
    spec["linux"]["resources"] = {"devices": [DENY_ALL, allow]}
    guest.create("c", spec)
    guest.start("c")
    # the number is no disk's: where the filter lets it through it is ENXIO
    said = 'for w in "</dev/mine" ">/dev/mine" ">/dev/null"; do sh -c ": $w" 2>&1 || :; done'

    def tried(name: str) -> list[str]:
        guest.exec("c", name, "sh", "-c", said)
        lines = guest.read_all("c", name).decode().splitlines()
        return [line.rpartition(": ")[2] for line in lines]

    assert tried("one") == ["No such device or address", "Operation not permitted"]
    resources = {"devices": [DENY_ALL]}
    guest.call("Update", wire.UpdateRequest(id="c", resources=json.dumps(resources).encode()))
    assert tried("two") == ["Operation not permitted"] * 2
    guest.call("Update", wire.UpdateRequest(id="c", resources=b'{"devices": [{"allow": true}]}'))
    assert tried("three") == ["No such device or address"] * 2
