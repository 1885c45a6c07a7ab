"""The accelerator: a KVM that is usable is found and used, cold and warm."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from host.conftest import how_started, podman, run

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="the host has no /dev/kvm")

CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


def test_features_and_the_state_of_a_container_say_kvm(image):
    features = json.loads(run("bufferzone", "features"))
    assert "kvm" in json.dumps(features)
    podman("run", "-d", "--name", "kvm", image, "sleep", "1000")
    id = json.loads(podman("inspect", "kvm"))[0]["Id"]
    facts = how_started(id)
    assert facts["bufferzone.accelerator"] == "kvm", facts
    assert facts["bufferzone.start"] == "warm", facts  # quickstart made the template
    podman("rm", "--force", "--time", "0", "kvm")


def test_the_guest_has_a_boot_of_its_own_and_the_hosts_time(image):
    """From a template that is older than it, and later on too: restored clocks neither stand nor run off."""
    podman("run", "-d", "--name", "clock", image, "sleep", "100000")
    boot_id = podman("exec", "clock", "cat", "/proc/sys/kernel/random/boot_id")
    assert boot_id != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # not what TCG leaves it with: both go on over a restore without a word from the hypervisor
    assert podman("exec", "clock", "cat", CLOCK) in ("kvm-clock", "tsc")
    for _ in range(2):
        before = time.time()
        now = int(podman("exec", "clock", "date", "+%s"))
        assert before - 1 <= now <= time.time()
    podman("rm", "--force", "--time", "0", "clock")
