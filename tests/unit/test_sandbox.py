"""A sandbox that is served before all is done for its first container."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from bufferzone.errors import HostError, VmmError
from bufferzone.sandbox.sandbox import Sandbox


def sandbox(settle):
    told = []
    made = Sandbox(
        "c",
        vmm=SimpleNamespace(kill=lambda: told.append("killed")),
        daemon=None,
        daemon_log=None,
        share=None,
        disk=None,
        agent_client=SimpleNamespace(lose=lambda reason: told.append(reason.message)),
        network=None,
        timeline=None,
        cgroup="",
        left=None,
        boot_timeout_s=1.0,
        facts={},
        log=lambda text: None,
        restored=True,
        then=lambda well: None,
        settle=settle,
    )
    return made, told


def test_a_container_waits_until_its_sandbox_has_settled():
    made, _ = sandbox(None)
    made._ready.set()
    waiting = threading.Thread(target=made.wait_ready)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    made.settle()
    waiting.join(60)
    assert not waiting.is_alive()


def test_what_went_wrong_while_it_settled_is_the_sandboxs_failure():
    def fails():
        raise HostError("cannot join cgroup x: Permission denied", code="cgroup")

    made, told = sandbox(fails)
    made.settle()
    assert told == ["cannot join cgroup x: Permission denied", "killed"]
    with pytest.raises(VmmError, match="cannot join cgroup x"):
        made.wait_ready()
