"""A sandbox that is served before all is done for its first container."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest

from bufferzone.config import Settings
from bufferzone.errors import HostError, VmmError
from bufferzone.record import replace
from bufferzone.sandbox.facts import Facts
from bufferzone.sandbox.sandbox import HostSide, Sandbox, Start
from bufferzone.vm.group import Group

FACTS = Facts(
    start="pool",
    accelerator="tcg",
    kvm="warn",
    image="d",
    vcpus=1,
    memory_mib=512,
    rootfs="virtiofs",
    egress=("deny all",),
)


def sandbox(finish=lambda: None):
    told = []
    vm = SimpleNamespace(
        vmm=None,
        agent=SimpleNamespace(lose=lambda reason: told.append(reason.message)),
        tree=None,
        kill=lambda: told.append("killed"),
    )
    host = HostSide(
        network=None, disk=None, cgroup=Group(""), left=None, timeline=None, log=lambda text: None
    )
    start = Start(kind="pool", settings=Settings(boot_timeout_s=1), finish=finish)
    return Sandbox("c", vm, host, start, FACTS), told


def test_a_container_waits_until_its_sandbox_has_settled():
    made, _ = sandbox()
    made._ready.set()
    waiting = threading.Thread(target=made.wait_ready)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    made.finish_start()
    waiting.join(60)
    assert not waiting.is_alive()


def test_what_went_wrong_while_it_settled_is_the_sandboxs_failure():
    def fails():
        raise HostError("cannot join cgroup x: Permission denied", code="cgroup")

    made, told = sandbox(fails)
    made.finish_start()
    assert told == ["cannot join cgroup x: Permission denied", "killed"]
    with pytest.raises(VmmError, match="cannot join cgroup x"):
        made.wait_ready()


def test_state_tells_facts_by_their_names_and_leaves_out_what_is_not_known():
    assert FACTS.to_annotations() == {
        "bufferzone.accelerator": "tcg",
        "bufferzone.kvm": "warn",
        "bufferzone.image": "d",
        "bufferzone.vcpus": "1",
        "bufferzone.memory": "512",
        "bufferzone.rootfs": "virtiofs",
        "bufferzone.start": "pool",
        "bufferzone.egress": "deny all",
    }
    ended = replace(FACTS, failure="it died", guest_kernel="6.1", vmm="qemu 7.2.22", refused=(("denied", 0),))
    more = ended.to_annotations().items() - FACTS.to_annotations().items()
    assert dict(more) == {
        "bufferzone.failure": "it died",
        "bufferzone.guest-kernel": "6.1",
        "bufferzone.vmm": "qemu 7.2.22",
        "bufferzone.egress-denied": "0",
    }


def test_a_vmm_that_was_closed_while_it_boots_has_ended():
    made, _ = sandbox()
    made._vmm = SimpleNamespace(fileno=lambda: -1)
    assert made._vmm_ended()


def test_a_vmm_that_does_not_come_up_has_the_time_of_a_boot_and_is_told_as_such():
    made, told = sandbox()

    def greet(timeout_s):
        raise VmmError(f"did not answer within {timeout_s} s during: start QEMU", code="vm-timeout")

    reader, writer = os.pipe()
    made._vmm = SimpleNamespace(fileno=lambda: reader)
    made.vm.greet = greet
    made.vm.awake = False
    made._come_up()
    os.close(reader)
    os.close(writer)
    assert told == ["did not answer within 1 s during: start QEMU", "killed"]


@pytest.mark.parametrize(
    ("code", "woke"),
    [("vm-timeout", False), ("vm-panic", False), ("vm-killed", None), ("virtiofsd-died", None)],
)
def test_whoever_started_it_is_told_whether_the_guest_or_the_host_kept_it_from_coming_up(code, woke):
    made, _ = sandbox()
    told = []
    made.start = replace(made.start, came_up=told.append)

    def greet(timeout_s):
        raise VmmError("it ended", code=code)

    made.vm.greet, made.vm.awake = greet, False
    made._vmm = SimpleNamespace(fileno=lambda: -1)
    made._come_up()
    assert told == [woke]


@pytest.mark.parametrize("how", ["deleted", "no cgroup"])
def test_a_guest_that_was_not_waited_for_is_not_told_to_have_failed(how):
    made, _ = sandbox(lambda: fails())
    told = []
    made.start = replace(made.start, came_up=told.append)

    def fails():
        raise HostError("cannot join cgroup x", code="cgroup")

    def greet(timeout_s):
        made.finish_start() if how == "no cgroup" else made.close()
        raise VmmError("the sandbox is shutting down", code="agent-closed")

    made.vm.greet, made.vm.awake, made.agent.close = greet, False, lambda: None
    made._vmm = SimpleNamespace(fileno=lambda: -1, features=SimpleNamespace(wall=False))
    made._come_up()
    assert told == [None]


class Sender:
    """An agent whose guest has this many connections with something to send, asked again and again."""

    def __init__(self, *left):
        self.left = list(left)

    def call(self, method, request, reply, *, timeout_s):
        assert (method, 0 < timeout_s <= 2) == ("Unsent", True)
        count = self.left.pop(0)
        if count is None:
            raise VmmError("the agent is gone", code="agent-lost")
        return reply(connections=count)


@pytest.mark.parametrize(
    ("joined", "left", "not_asked"), [(True, [2, 1, 0, 9], [9]), (False, [1], [1]), (True, [1, None, 9], [9])]
)
def test_a_vm_ends_when_what_its_last_container_sent_has_left(joined, left, not_asked):
    made, told = sandbox()
    made.network, made.agent = SimpleNamespace(is_joined=joined), Sender(*left)
    made.container_stopped(False)
    assert made.agent.left == left
    made.container_stopped(True)
    assert (made.agent.left, told) == (not_asked, ["killed"])
    made.let_leave()  # at the end of the shim: its VM is gone
    assert made.agent.left == not_asked
