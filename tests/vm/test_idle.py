"""A sandbox in which nothing happens costs the host next to nothing: fifty of them are beside every start."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from vm.verbs import bundle, privileged
from vm.warm import Warm

pytestmark = pytest.mark.vm

#: switches of QEMU's threads per second: about 45 in a guest with its kernel's own timers, about 8 without
MOST_A_SECOND = 25
WINDOW_S, MOST_S = 3.0, 60.0
SCRIPT = """
mount -t tracefs tracefs /tmp
echo "traced $(ls /tmp/events 2>/dev/null | busybox wc -l)"
echo up
exec sleep 1000
"""


@pytest.fixture
def warm(tmp_path: Path, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path / "warm", guest_image, templates=False)
    yield warm
    warm.runtime.close()


def switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    found = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{task}/status").read_text()
        found += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


def test_an_idle_guest_sleeps_and_keeps_no_memory_for_tracing(tmp_path: Path, warm: Warm):
    value = privileged(SCRIPT)
    directory = bundle(tmp_path / "bundle", SCRIPT, process=value["process"])
    container = warm.runtime.run("idle", directory)
    container.expect("up")
    assert b"traced 0\n" in container.seen[container.out]
    pid = warm.runtime.helper_pids("idle")["qemu"]
    rates: list[float] = []
    end = time.monotonic() + MOST_S
    while not rates or rates[-1] > MOST_A_SECOND:
        assert time.monotonic() < end, rates
        before, began = switches(pid), time.monotonic()
        select.select([], [], [], WINDOW_S)  # that nothing happens is no event
        rates.append((switches(pid) - before) / (time.monotonic() - began))
