"""Frames that a hostile guest makes by hand, at the bridge: none of them comes out on the other side."""

from __future__ import annotations

import secrets
from contextlib import suppress

import pytest

from unit import egress_world as world_of
from unit import frames
from unit.egress_world import World
from unit.hostile import (
    AWAY,
    DENIED,
    ENCAPSULATED,
    FORGED,
    GUEST4,
    MAC,
    MALFORMED,
    OPEN4,
    PASSING,
    RULES,
    SHUT4,
    plain,
    to_gateway,
    udp4,
)

TAG = 8


@pytest.fixture(scope="module")
def world():
    world_of.need_what_it_takes()
    with World() as made:
        made.build(*RULES)
        yield made


@pytest.fixture
def arrives(world):
    """Whether a frame, built around a tag, gets through; what is sent after it certainly does."""
    sender = world.frames(world.guest, "eth0")
    receiver = world.frames(world.outside, "out")

    def look(build):
        tag, end = secrets.token_bytes(TAG), secrets.token_bytes(TAG)
        for frame in (build(tag), plain(end)):
            sender.send(frame.ljust(60, b"\0"))
        seen = False
        while end not in (frame := receiver.recv(65536)):
            seen = seen or tag in frame
        return seen

    return look


@pytest.mark.parametrize("name", PASSING)
def test_what_the_link_and_the_policy_need_passes(arrives, name):
    assert arrives(PASSING[name])


@pytest.mark.parametrize("name", ENCAPSULATED)
def test_allowed_packets_in_other_clothes_do_not_pass(world, arrives, name):
    before = world.counters()["forged"]
    assert not arrives(ENCAPSULATED[name])
    assert world.counters()["forged"] > before  # the kernel of the guest makes some of its own


@pytest.mark.parametrize("name", {**FORGED, **AWAY})
def test_a_guest_does_not_pass_for_somebody_else_nor_reach_beyond_the_link(world, arrives, name):
    before = world.counters()["forged"]
    assert not arrives({**FORGED, **AWAY}[name])
    assert world.counters()["forged"] > before  # the kernel of the guest makes some of its own


@pytest.mark.parametrize("name", MALFORMED)
def test_packets_that_are_not_whole_and_plain_do_not_pass(world, arrives, name):
    before = sum(world.counters().values())
    assert not arrives(MALFORMED[name])
    assert sum(world.counters().values()) > before


@pytest.mark.parametrize("name", DENIED)
def test_what_the_policy_denies_does_not_pass_and_is_counted(world, arrives, name):
    before = world.counters()["denied"]
    assert not arrives(DENIED[name])
    assert world.counters()["denied"] == before + 1


def test_frames_to_the_gate_itself_are_heard_by_nobody(world, arrives):
    bridge = world.ip("bridge", "-o", "link", "show", "bz").split("link/ether ")[1].split()[0]
    assert not arrives(lambda tag: to_gateway(frames.IP, udp4(tag, SHUT4), to=bridge))
    sniffer = world.frames(world.guest, "eth0")
    assert not arrives(
        lambda tag: to_gateway(frames.ARP, frames.arp(1, MAC, GUEST4, "10.99.0.50") + tag, to=bridge)
    )
    sniffer.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            assert sniffer.recv(65536)[6:12].hex(":") != bridge


def test_an_answer_to_one_caller_opens_no_way_to_another(world, arrives):
    asked = world.udp(world.guest, GUEST4, 5353)
    caller = world.udp(world.outside, OPEN4, 6000)
    caller.sendto(b"hello", (GUEST4, 5353))
    assert asked.recvfrom(100)[1] == (OPEN4, 6000)

    def answer(port, destination=OPEN4):
        def build(tag):
            datagram = frames.udp(GUEST4, destination, port, tag, from_port=5353)
            return to_gateway(frames.IP, frames.ipv4(GUEST4, destination, frames.UDP, datagram))

        return build

    assert arrives(answer(6000))
    assert not arrives(answer(6001))
    assert not arrives(answer(6000, SHUT4))
