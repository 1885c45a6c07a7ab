"""The drill on a host that is thrown away: the attacks reach it where there is no zone, and not under ours.

A stage of its own, since it takes an hour and changes the host's clock and settings:

    ./scripts/host trixie env BUFFERZONE_HOST=drill python3 -m pytest tests/host/test_drill.py

runc's own faults of the catalogue are tried and not expected: its version decides. What a privileged
container may do by design is.
"""

from __future__ import annotations

import json

import pytest

from bufferzone.bench import attacks
from host.conftest import run

pytestmark = pytest.mark.stage("drill")
#: the end of this host, or of the tests on it
DEADLY = ("kernel-panic", "reboot", "fork-bomb", "memory-bomb")
#: what a container that has every capability and the host's processes reaches, whatever the runtime's version
CERTAIN = (
    "release-agent",
    "core-pattern",
    "modprobe-path",
    "host-root",
    "leaked-descriptors",
    "ptrace",
    "sysctl",
    "device-node",
    "clock",
)


def drill(name: str, *words: str, status: int) -> dict[str, object]:
    (found,) = json.loads(run("bz", "drill", "--json", "--only", name, *words, status=status))
    print(found)
    return dict(found)


def runc() -> tuple[str, ...]:
    return "--runtime", run("sh", "-c", "command -v runc"), "--throw-away-host"


@pytest.mark.parametrize("name", CERTAIN)
def test_an_attack_reaches_a_host_without_a_zone(name):
    assert drill(name, *runc(), status=1)["touched"]


@pytest.mark.parametrize("name", [name for name in attacks.NAMES if name not in (*CERTAIN, *DEADLY)])
def test_an_attack_on_a_fault_of_the_runtime_is_told_as_it_ends(name):
    """0: this runc is not for it, 1: it reached the host, or was not tried."""
    ended = run("sh", "-c", 'bz drill --only "$@" >&2; echo $?', "drill", name, *runc())
    assert ended in ("0", "1")


@pytest.mark.parametrize("name", attacks.NAMES)
def test_an_attack_is_contained_by_ours(name):
    found = drill(name, status=0)
    assert (found["tried"], found["contained"], found["touched"]) == (True, True, [])
