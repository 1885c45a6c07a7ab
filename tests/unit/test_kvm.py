"""The KVM probe: what it says of devices that are none, its cache, and the policy on top."""

import errno
import grp
import json
import os
import socket
from pathlib import Path

import pytest

from bufferzone.errors import HostError, UsageError
from bufferzone.linux import kvm
from bufferzone.vmm.accelerator import choose

YES = kvm.Probe(usable=True, milliseconds=0.1)
NO = kvm.Probe(usable=False, reason="interpreted", milliseconds=90.0)


@pytest.mark.parametrize(
    ("modules", "why"),
    [
        ([], "no such file or directory: neither kvm_intel nor kvm_amd is loaded"),
        (["kvm_amd"], "no such file or directory"),
    ],
)
def test_a_missing_device_is_named(modules, why, monkeypatch) -> None:
    monkeypatch.setattr(kvm, "_modules", lambda: modules)
    found = kvm.probe("/dev/no-such-kvm")
    assert not found.usable
    assert found.reason == f"cannot open /dev/no-such-kvm: {why}"


def test_a_device_that_we_may_not_open_names_its_group(tmp_path) -> None:
    closed = tmp_path / "kvm"
    closed.write_text("")
    os.chown(closed, 0, grp.getgrnam("kvm").gr_gid if _has_kvm_group() else 4711)
    closed.chmod(0o660)
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    group = "kvm" if _has_kvm_group() else "4711"
    assert kvm._why_closed(str(closed), error) == f"permission denied: it is for group {group}, mode 660"
    assert kvm._why_closed(str(tmp_path / "gone"), error) == "permission denied"


def _has_kvm_group() -> bool:
    return any(row.gr_name == "kvm" for row in grp.getgrall())


@pytest.mark.parametrize(
    ("finding", "modules", "reason"),
    [
        (("", 0.1), ["kvm_pvm"], "it is PVM (kvm_pvm), which is for guest kernels built for it"),
        (("slow", 90.0), ["kvm_pvm"], "slow; it is PVM (kvm_pvm), which is for guest kernels built for it"),
        (("closed", None), ["kvm_pvm"], "closed"),
        (("", 0.1), ["kvm_amd"], ""),
        (("", 0.1), ["kvm_amd", "kvm_pvm"], ""),
        (("slow", 90.0), [], "slow"),
    ],
)
def test_pvm_is_told_apart_from_a_kvm_for_any_guest(finding, modules, reason, monkeypatch) -> None:
    monkeypatch.setattr(kvm, "_modules", lambda: modules)
    monkeypatch.setattr(kvm, "_attempt", lambda device: finding)
    assert kvm._best_attempt("/dev/kvm") == (reason, finding[1])


def test_a_device_that_is_not_kvm_is_refused_by_its_first_answer() -> None:
    found = kvm.probe("/dev/null")
    assert not found.usable
    assert "KVM refused to run a guest" in found.reason


def test_the_real_device_gets_a_verdict_with_a_reason_or_a_time() -> None:
    found = kvm.probe()
    if found.usable:
        assert found.milliseconds is not None
        assert found.reason == ""
    else:
        assert found.reason


@pytest.mark.parametrize(
    ("python", "loop", "usable"),
    [
        (2.4, 0.1, True),  # hardware
        (2.4, 260.0, False),  # a KVM that interprets
        (290.0, 33.0, True),  # an emulated machine on a starved one, whose KVM is as good as its CPU
        (290.0, 30_000.0, False),
    ],
)
def test_a_kvm_is_compared_with_the_pace_of_its_host_and_not_with_a_clock(python, loop, usable, monkeypatch):
    clock = iter((0.0, python / 1000, 0.0, loop / 1000))
    monkeypatch.setattr(kvm.time, "thread_time", lambda: next(clock))
    limit = kvm.LIMIT * kvm._pace()
    began = kvm.time.thread_time()
    reason = kvm._verdict((kvm.time.thread_time() - began) * 1000, limit)
    assert reason == (
        ""
        if usable
        else f"a loop of 100000 rounds took {loop:.1f} ms, the limit is {4 * python:.1f}: it is interpreted"
    )


def test_one_good_attempt_is_enough_and_what_cannot_run_is_not_tried_again(monkeypatch):
    found = iter([("slow", 90.0), ("", 0.1), ("slow", 90.0)])
    monkeypatch.setattr(kvm, "_modules", lambda: ["kvm_amd"])
    monkeypatch.setattr(kvm, "_attempt", lambda device: next(found))
    assert kvm._best_attempt("/dev/kvm") == ("", 0.1)
    found = iter([("closed", None), ("", 0.1)])
    assert kvm._best_attempt("/dev/kvm") == ("closed", None)


def test_the_finding_is_kept_and_a_broken_cache_is_replaced(tmp_path: Path) -> None:
    cache = tmp_path / "kvm.json"
    first = kvm.cached_probe(str(cache), "/dev/null")
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({**kept, "reason": "from the cache"}))
    assert kvm.cached_probe(str(cache), "/dev/null").reason == "from the cache"
    for broken in ("", "{", "[]", '{"key": 1}'):
        cache.write_text(broken)
        assert kvm.cached_probe(str(cache), "/dev/null") == first
    assert [kvm.ROUNDS, kvm.LIMIT] in kept["key"]  # another version's verdict is not ours
    cache.write_text(json.dumps({**kept, "key": ["another boot"]}))
    assert kvm.cached_probe(str(cache), "/dev/null") == first
    assert [path.name for path in tmp_path.iterdir()] == ["kvm.json"]


def test_a_device_that_can_no_longer_be_opened_is_probed_anew(tmp_path: Path) -> None:
    """As when the module is gone and its node stays: access(2) says yes, open(2) fails with ENXIO."""
    device, cache = tmp_path / "kvm", tmp_path / "cache"
    device.touch()
    kvm.cached_probe(str(cache), str(device))
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({**kept, "usable": True, "reason": ""}))
    assert kvm.cached_probe(str(cache), str(device)).usable
    device.unlink()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(device))
        assert os.access(device, os.R_OK | os.W_OK)
        found = kvm.cached_probe(str(cache), str(device))
    assert not found.usable
    assert found.reason.startswith(f"cannot open {device}: ")


def test_the_policy_decides_what_happens_without_kvm() -> None:
    for policy in ("require", "warn", "allow"):
        assert choose(policy, YES).name == "kvm"
    assert "interpreted" in choose("warn", NO).warning
    assert (choose("allow", NO).name, choose("allow", NO).warning) == ("tcg", "")
    with pytest.raises(HostError, match="interpreted") as caught:
        choose("require", NO)
    assert caught.value.code == "kvm-required"
    with pytest.raises(UsageError):
        choose("maybe", YES)
