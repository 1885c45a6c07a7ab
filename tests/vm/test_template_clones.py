"""VMs restored from one template are not twins: randomness, ids and clock of each are its own.

Two CPUs per VM, since the kernel keeps random state per CPU. BUFFERZONE_CLONES=6 for a quick look.

What this cannot show: that it is Hello's reseed which makes clones differ. A kernel that is younger than two
minutes reseeds by itself at the first draw when its seed is older than half its uptime (crng_has_old_seed in
drivers/char/random.c), and a template is a few seconds old. Shown by hand: a template that idled for 10 s and
reseeded just before it was saved; four clones drew the same bytes right before add_entropy(), and four
different ones right after.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from vm.verbs import BOOT_S, Container, await_true, bundle, privileged
from vm.warm import Warm

pytestmark = pytest.mark.vm

CLONES = int(os.environ.get("BUFFERZONE_CLONES", "50"))
CLOCK_S = 0.05
#: an answer over two pipes and the VM: the error is known to this width, and rounds go on until it is
WIDTH_S, ROUNDS = 0.02, 100

#: root of the guest, in the VM's own namespace, gives the NIC that nobody uses its driver by hand
BIND = r"""
busybox mount -t sysfs sys /sys
for device in /sys/bus/virtio/devices/*; do
    test $(busybox cat $device/device) = 0x0001 || continue
    echo ${device##*/} >/sys/bus/virtio/drivers/virtio_net/bind
done
echo mac $(busybox cat /sys/bus/virtio/drivers/virtio_net/*/net/*/address)
"""
#: everything here must differ between any two clones; cpuN: drawn on that CPU. Two stacks alone would be at
#: one place by chance in one of a thousand runs
SCRIPT = (
    "busybox nsenter -t 1 -n busybox sh -c '"
    + BIND
    + r"""'
bytes() { busybox taskset $1 busybox od -An -v -tx1 -N32 /dev/urandom | busybox tr -d ' \n'; }
places() {
    busybox taskset $1 busybox grep -E "stack|heap" /proc/self/maps |
        busybox cut -d' ' -f1 | busybox tr -d '\n'
}
echo "random-cpu0 $(bytes 1)"
echo "random-cpu1 $(bytes 2)"
echo "places-cpu0 $(places 1)"
echo "places-cpu1 $(places 2)"
echo "uuid $(busybox cat /proc/sys/kernel/random/uuid)"
echo "boot_id $(busybox cat /proc/sys/kernel/random/boot_id)"
echo "hostname $(busybox hostname)"
echo end
while read line; do echo $EPOCHREALTIME; done
"""
)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path_factory.mktemp("clones"), guest_image, vcpus=2)
    warm.make_template()
    yield warm
    warm.runtime.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    value = privileged(SCRIPT)
    # the container shows the VM's hostname without a UTS namespace of its own, its init without one for PIDs
    value["linux"]["namespaces"] = [{"type": kind} for kind in ("ipc", "mount", "network")]
    value["mounts"].append(
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}
    )
    return bundle(tmp_path_factory.mktemp("bundle") / "b", **value)


class Clone:
    """A restored VM with the script running in it."""

    def __init__(self, warm: Warm, made: Path, id: str, begun: str = "warm") -> None:
        self._warm, self.id = warm, id
        there, self._stdin = os.pipe()
        verb, self._container = warm.runtime.begin_create(id, made, stdin=there)
        os.close(there)
        assert verb.wait(BOOT_S) == 0, self._container.errors()
        assert warm.begun(id) == begun
        warm.runtime.ok("start", id)
        self._lines = lines(self._container)

    def facts(self) -> dict[str, str]:
        """What the script printed."""
        found = {}
        for line in self._lines:
            if line == "end":
                break
            name, _, found[name] = line.partition(" ")
        return found

    def clock_error(self) -> tuple[float, float]:
        """Bounds in seconds of the guest's wall clock minus ours: it was read between question and answer."""
        least, most = float("-inf"), float("inf")
        for _ in range(ROUNDS):
            asked = time.time()
            os.write(self._stdin, b"\n")
            told = float(next(self._lines))
            answered = time.time()
            least, most = max(least, told - answered), min(most, told - asked)
            if most - least < WIDTH_S:
                break
        return least, most

    def end(self) -> None:
        os.close(self._stdin)
        self._warm.runtime.ok("delete", "--force", self.id)


def lines(container: Container, timeout_s: float = 120.0) -> Iterator[str]:
    """Its output, line by line."""
    data = b""
    while True:
        while b"\n" not in data:
            assert select.select([container.out], [], [], timeout_s)[0], f"no more output: {data!r}"
            chunk = os.read(container.out, 4096)
            assert chunk, f"the output ended: {data!r} {container.errors()}"
            data += chunk
        line, _, data = data.partition(b"\n")
        yield line.decode()


def test_no_two_clones_share_anything_random_and_every_clock_is_right(warm: Warm, made: Path) -> None:
    seen: dict[str, str] = {}
    worst = max(end_checked(Clone(warm, made, f"clone{number}"), seen) for number in range(CLONES))
    print(f"{CLONES} clones; no clock is further off than {worst * 1000:.1f} ms")


def end_checked(clone: Clone, seen: dict[str, str]) -> float:
    """Nothing of it may be in `seen` yet, its name and clock are right; seconds that the clock may be off."""
    facts = clone.facts()
    least, most = clone.clock_error()
    clone.end()
    assert len(facts) == 8, facts
    assert facts["hostname"] == clone.id
    assert re.fullmatch("02(:[0-9a-f]{2}){5}", facts["mac"]), facts
    for name, value in facts.items():
        assert len(value) > len("clone"), facts
        assert value not in seen, f"{clone.id}'s {name} is also {seen[value]}"
        seen[value] = f"{clone.id}'s {name}"
    assert least >= -CLOCK_S, f"{clone.id}: {least:.3f} to {most:.3f} s"
    assert most <= CLOCK_S, f"{clone.id}: {least:.3f} to {most:.3f} s"
    return max(abs(least), abs(most))


def test_vms_that_waited_in_the_pool_are_no_twins_and_know_the_time(
    tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef, made: Path, warm: Warm
) -> None:
    cloned = warm.store
    warm = Warm(tmp_path_factory.mktemp("pool"), guest_image, vcpus=2, **{"pool.size": 2})
    warm.take_template(cloned)
    assert warm.bz("pool", "start").status == 0
    try:
        await_true(lambda: warm.bz("pool", "ls").out.count("waiting") == 2, "two waiting VMs", BOOT_S)
        seen: dict[str, str] = {}
        for number in range(2):
            end_checked(Clone(warm, made, f"waited{number}", "pool"), seen)
    finally:
        warm.runtime.close()
        assert warm.bz("pool", "stop").status == 0


def test_clones_woken_at_the_same_time_are_no_twins_either(warm: Warm, made: Path) -> None:
    pipes = [os.pipe() for _ in range(2)]
    begun: list[tuple[subprocess.Popen[bytes], Container]] = [
        warm.runtime.begin_create(f"twin{number}", made, stdin=pipe[0]) for number, pipe in enumerate(pipes)
    ]
    facts = []
    for verb, container in begun:
        assert verb.wait(BOOT_S) == 0, container.errors()
        assert warm.begun(container.id) == "warm"
        warm.runtime.ok("start", container.id)
    for _, container in begun:
        facts.append(set(itertools.takewhile(lambda line: line != "end", lines(container))))
        warm.runtime.ok("delete", "--force", container.id)
    for end in sum(pipes, ()):
        os.close(end)
    assert len(facts[0]) == len(facts[1]) == 8
    assert facts[0] & facts[1] == set()
