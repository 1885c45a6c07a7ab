"""The KVM probe: what it says of devices that are none, its cache, and the policy on top."""

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


def test_a_missing_device_is_named() -> None:
    found = kvm.probe("/dev/no-such-kvm")
    assert not found.usable
    assert found.reason == "cannot open /dev/no-such-kvm: No such file or directory"


def test_a_device_that_is_not_kvm_is_refused_by_its_first_answer() -> None:
    found = kvm.probe("/dev/null")
    assert not found.usable
    assert "KVM refused to run a guest" in found.reason


def test_the_real_device_gets_a_verdict_with_a_reason_or_a_time() -> None:
    found = kvm.probe()
    if found.usable:
        assert found.milliseconds is not None
        assert found.milliseconds <= kvm.LIMIT_MS
    else:
        assert found.reason


def test_the_finding_is_kept_and_a_broken_cache_is_replaced(tmp_path: Path) -> None:
    cache = tmp_path / "kvm.json"
    first = kvm.cached_probe(str(cache), "/dev/null")
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({**kept, "reason": "from the cache"}))
    assert kvm.cached_probe(str(cache), "/dev/null").reason == "from the cache"
    for broken in ("", "{", "[]", '{"key": 1}'):
        cache.write_text(broken)
        assert kvm.cached_probe(str(cache), "/dev/null") == first
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
