"""OCI seccomp sections, compiled by the real libseccomp and loaded into a child that tries the calls."""

import ctypes
import errno
import json
import os
from typing import Any

import pytest

from bufferzone.errors import SpecError
from bufferzone.linux import process
from bufferzone.linux.libseccomp import Filter, compile_profile

PODMAN = "/usr/share/containers/seccomp.json"
ALLOWED = {"defaultAction": "SCMP_ACT_ALLOW"}
GETPPID, PERSONALITY, NFSSERVCTL, BEYOND = 110, 135, 180, 460


def rule(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", **more}


def errno_of(filter_: Filter, number: int, *arguments: int) -> int:
    """Load the filter in a child, make the call, return its errno (0 if it worked)."""
    pid = os.fork()
    if pid == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            process.set_no_new_privileges()
            process.load_seccomp(filter_.program, filter_.flags)
            result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
            os._exit(ctypes.get_errno() if result < 0 else 0)
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_refused_call_fails_with_eperm_and_others_work() -> None:
    found = compile_profile({**ALLOWED, "syscalls": [rule("getppid")]})
    assert errno_of(found, GETPPID) == errno.EPERM
    assert errno_of(found, 39) == 0


def test_errno_ret_is_what_the_caller_sees() -> None:
    found = compile_profile({**ALLOWED, "syscalls": [rule("getppid", errnoRet=77)]})
    assert errno_of(found, GETPPID) == 77


def test_arguments_decide_and_two_on_one_index_are_alternatives() -> None:
    args = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (0x20, 0x21)]
    found = compile_profile({**ALLOWED, "syscalls": [rule("personality", args=args, errnoRet=77)]})
    assert [errno_of(found, PERSONALITY, value) for value in (0x20, 0x21, 0xFFFFFFFF)] == [77, 77, 0]


def test_masked_comparison_uses_both_values() -> None:
    args = [{"index": 0, "value": 0xF0, "valueTwo": 0x20, "op": "SCMP_CMP_MASKED_EQ"}]
    found = compile_profile({**ALLOWED, "syscalls": [rule("personality", args=args, errnoRet=77)]})
    assert errno_of(found, PERSONALITY, 0x2F) == 77
    assert errno_of(found, PERSONALITY, 0xFFFFFFFF) == 0


def test_killing_actions_kill() -> None:
    for action in ("SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"):
        found = compile_profile({**ALLOWED, "syscalls": [{"names": ["getppid"], "action": action}]})
        assert errno_of(found, GETPPID) == -31, action  # SIGSYS


def test_unknown_names_and_rules_that_repeat_the_default_are_skipped() -> None:
    syscalls = [rule("no_such_call", "getppid"), {"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}]
    assert errno_of(compile_profile({**ALLOWED, "syscalls": syscalls}), GETPPID) == errno.EPERM


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    section = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["exit_group", "write", "read", "close_range"], "action": "SCMP_ACT_ALLOW"}],
    }
    found = compile_profile(section)
    assert errno_of(found, BEYOND) == errno.ENOSYS
    assert errno_of(found, GETPPID) == errno.EPERM


@pytest.mark.skipif(not os.path.exists(PODMAN), reason=f"needs podman's profile: {PODMAN}")
def test_podmans_default_profile_compiles_for_several_architectures_and_holds() -> None:
    with open(PODMAN) as file:
        profile = json.load(file)
    # podman resolves the conditions before it writes config.json; here: no capability, this architecture
    kept = []
    for entry in profile["syscalls"]:
        conditions = {**(entry.get("includes") or {}), **(entry.get("excludes") or {})}
        if not (entry.get("includes") or {}).get("caps") and not conditions.get("arches"):
            kept.append({key: entry.get(key) for key in ("names", "action", "args", "errnoRet")})
    profile["syscalls"] = kept
    profile["architectures"] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    found = compile_profile(profile)
    assert len(found.program) % 8 == 0
    assert errno_of(found, NFSSERVCTL) == errno.EPERM  # by itself it is ENOSYS everywhere
    assert errno_of(found, 39) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"defaultAction": "SCMP_ACT_MAYBE"},
            "linux.seccomp.defaultAction: unknown action: 'SCMP_ACT_MAYBE'",
        ),
        (
            {"defaultAction": "x" * 5000},
            f"linux.seccomp.defaultAction: unknown action: '{'x' * 79}",
        ),
        ({"defaultAction": None}, "linux.seccomp.defaultAction: unknown action: None"),
        ({"architectures": ["x86"]}, "linux.seccomp.architectures[0]: unknown architecture: 'x86'"),
        ({"flags": ["SECCOMP_X"]}, "linux.seccomp.flags[0]: unknown or unsupported flag: 'SECCOMP_X'"),
        ({"syscalls": {}}, "linux.seccomp.syscalls: not a list"),
        ({"syscalls": [1]}, "linux.seccomp.syscalls[0]: not an object"),
        ({"syscalls": [rule()]}, "linux.seccomp.syscalls[0].names: empty"),
        ({"syscalls": [rule("a\0b")]}, "linux.seccomp.syscalls[0].names[0]: not a name: 'a\\x00b'"),
        (
            {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]},
            "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY is not supported",
        ),
        (
            {"syscalls": [rule("read", args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}])]},
            "linux.seccomp.syscalls[0].args[0].index: not 0 to 5: 6",
        ),
        (
            {"syscalls": [rule("read", args=[{"index": 0, "value": 0, "op": "EQ"}])]},
            "linux.seccomp.syscalls[0].args[0].op: unknown operator: 'EQ'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_json_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        compile_profile({**ALLOWED, **change})
    assert caught.value.message == message


def test_a_listener_that_nothing_would_be_told_is_ignored_as_by_runc():
    plain = {"defaultAction": "SCMP_ACT_ALLOW"}
    assert compile_profile({**plain, "listenerPath": "/x"}) == compile_profile(plain)
