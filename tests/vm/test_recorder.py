"""What happens to a container in its VM is recorded: kills for memory, its network, refused packets."""

from __future__ import annotations

import json

import pytest

from unit import hostile
from vm.podman import Podman
from vm.test_bz_podman import bz
from vm.test_podman_egress import POLICY, words_of, world
from vm.verbs import await_true

__all__ = ["world"]
pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

EATS = "x=a; while :; do x=$x$x; done"
ADDED = "192.0.2.77"


def records(podman: Podman, id: str) -> list[dict[str, object]]:
    lines = bz(podman, "log", "show", "--json", "--id", id).splitlines()
    return [json.loads(line) for line in lines]


def test_a_kill_for_memory_a_new_address_and_a_refused_packet_are_recorded(podman: Podman, world):
    flags = ["--memory", "64m", "--annotation", "bufferzone.recorder=true", *words_of(world, POLICY)]
    id = podman("run", "-d", *flags, podman.image, "sleep", "1000").text

    def found(event: str, text: str) -> bool:
        return any(each["event"] == event and text in json.dumps(each) for each in records(podman, id))

    try:
        world.ip("container", "addr", "add", f"{ADDED}/24", "dev", "eth0")
        await_true(lambda: found("network", ADDED), "the new address")
        podman.any("exec", id, "nc", "-w", "1", hostile.SHUT4, "80")
        await_true(lambda: found("egress-refused", '"denied": 1'), "a refused packet")
        assert podman.any("exec", id, "sh", "-c", EATS).status == 137
        await_true(lambda: found("oom", id), "the kill for memory")
    finally:
        podman("rm", "--force", "--time", "0", id)
    assert [each["event"] for each in records(podman, id)][-1] == "sandbox-end"
    assert "the last is" in bz(podman, "log", "verify")
