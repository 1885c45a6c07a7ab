"""An egress policy behind passt: each packet of the guest's is looked at, whatever the guest says of it."""

from __future__ import annotations

import socket
import struct

import pytest

from bufferzone import egress
from bufferzone.network import frame_filter, passt_policy
from unit import frames

GUEST, PEER, OTHER, GATEWAY = "10.0.2.15", "192.0.2.7", "198.51.100.1", "10.0.2.2"
OURS, THEIRS = "02:62:7a:00:00:01", "9a:55:9a:55:9a:55"
SYN, ACK, RST, FIN = 2, 16, 4, 1
GATEWAY_RAW = socket.inet_aton(GATEWAY)


def policy(*rules: str) -> passt_policy.Policy:
    return passt_policy.Policy(egress.parse_all(rules))


def sent(protocol, payload, to=PEER, **more) -> memoryview:
    """A frame of the guest's."""
    return memoryview(
        frames.ether(THEIRS, OURS, frames.IP, frames.ipv4(GUEST, to, protocol, payload, **more))
    )


def came(protocol, payload, source=PEER) -> memoryview:
    """A frame of passt's."""
    return memoryview(frames.ether(OURS, THEIRS, frames.IP, frames.ipv4(source, GUEST, protocol, payload)))


def tcp(flags, port=443, to=PEER, from_port=40000) -> memoryview:
    return sent(frames.TCP, frames.tcp(GUEST, to, port, flags, from_port=from_port), to)


def udp(port=53, to=PEER) -> memoryview:
    return sent(frames.UDP, frames.udp(GUEST, to, port, b"x"), to)


def ping(kind=8, to=PEER) -> memoryview:
    return sent(frames.ICMP, frames.icmp(kind, 0, bytes(4)), to)


@pytest.mark.parametrize(
    ("rule", "passes", "refused"),
    [
        ("tcp:192.0.2.7:443", [tcp(SYN), tcp(ACK)], [tcp(SYN, 444), tcp(SYN, to=OTHER), udp(443), ping()]),
        ("tcp:192.0.2.0/24:400-500", [tcp(SYN, 400), tcp(SYN, 500)], [tcp(SYN, 399), tcp(SYN, 501)]),
        ("udp:192.0.2.7", [udp(1), udp(65535)], [tcp(SYN), udp(to=OTHER)]),
        ("icmp:192.0.2.7", [ping()], [ping(0), ping(5), ping(to=OTHER), tcp(SYN)]),
        ("192.0.2.7", [tcp(SYN), udp(), ping(), sent(47, b"x")], [tcp(SYN, to=OTHER)]),
        ("0.0.0.0/0", [tcp(SYN, to=OTHER), udp(), ping()], []),
        ("[::/0]", [], [tcp(SYN), udp(), ping()]),
        ("none", [], [tcp(SYN), tcp(ACK), udp(), ping(), sent(47, b"x")]),
    ],
)
def test_what_a_rule_allows_passes_and_nothing_else(rule, passes, refused):
    held = policy(rule)
    assert [held.allows(frame) for frame in passes + refused] == [True] * len(passes) + [False] * len(refused)
    assert held.denied == len(refused)


@pytest.mark.parametrize(
    "frame",
    [
        sent(frames.TCP, frames.tcp(GUEST, PEER, 443, SYN), flags=0x2000),
        sent(frames.TCP, frames.tcp(GUEST, PEER, 443, SYN), flags=0x0003),
        sent(frames.TCP, frames.tcp(GUEST, PEER, 443, SYN), options=b"\x01\x01\x01\x00"),
        sent(frames.TCP, frames.tcp(GUEST, PEER, 443, SYN), length=39),
        sent(frames.TCP, frames.tcp(GUEST, PEER, 443, SYN), length=4000),
        sent(frames.UDP, b"short"),
        tcp(SYN)[:33],
    ],
)
def test_what_hides_its_port_does_not_pass_where_every_address_may_be_reached(frame):
    assert not policy("tcp:0.0.0.0/0", "udp:0.0.0.0/0").allows(frame)


def test_who_called_the_guest_is_answered_and_not_called():
    held = policy("none")
    answer = tcp(SYN | ACK, port=50000, from_port=80)
    assert not held.allows(answer)
    held.came(came(frames.TCP, frames.tcp(PEER, GUEST, 80, SYN, from_port=50000)))
    assert held.allows(answer)
    assert held.allows(tcp(ACK | FIN, port=50000, from_port=80))
    assert not held.allows(tcp(SYN, port=50000, from_port=80))
    assert not held.allows(tcp(ACK, port=50001, from_port=80))
    assert not held.allows(tcp(ACK, port=50000, from_port=80, to=OTHER))


def test_an_answer_to_the_guest_makes_nobody_a_caller():
    held = policy("tcp:192.0.2.7:443")
    held.came(came(frames.TCP, frames.tcp(OTHER, GUEST, 40000, SYN | ACK, from_port=80), OTHER))
    assert not held.allows(tcp(ACK, port=80, to=OTHER))


def test_of_too_many_callers_the_one_silent_for_longest_is_forgotten(monkeypatch):
    monkeypatch.setattr(passt_policy, "_MOST_CALLERS", 2)
    held = policy("none")

    def call(port: int, flags: int = SYN) -> None:
        held.came(came(frames.TCP, frames.tcp(PEER, GUEST, 80, flags, from_port=port)))

    call(1)
    call(2)
    call(1, ACK)
    call(3)
    assert [held.allows(tcp(ACK, port=port, from_port=80)) for port in (1, 2, 3)] == [True, False, True]


def test_a_refused_connection_is_reset_as_by_its_peer():
    answer = passt_policy.refusal(tcp(SYN), GATEWAY_RAW)
    assert answer[:14] == bytes(tcp(SYN)[6:12]) + bytes(tcp(SYN)[:6]) + b"\x08\x00"
    assert (answer[26:30], answer[30:34]) == (socket.inet_aton(PEER), socket.inet_aton(GUEST))
    assert struct.unpack_from("!HHIIBB", answer, 34) == (443, 40000, 0, 1001, 5 << 4, RST | ACK)
    assert frames.checksum(answer[14:34]) == 0
    assert frames.checksum(answer[26:34] + struct.pack("!HH", 6, 20) + answer[34:]) == 0
    later = passt_policy.refusal(tcp(ACK), GATEWAY_RAW)
    assert struct.unpack_from("!HHIIBB", later, 34) == (443, 40000, 2000, 0, 5 << 4, RST)
    assert passt_policy.refusal(tcp(RST), GATEWAY_RAW) == b""


def test_what_else_is_refused_is_answered_by_the_gateway_but_for_errors():
    answer = passt_policy.refusal(udp(), GATEWAY_RAW)
    assert (answer[23], answer[26:30], answer[34], answer[35]) == (1, GATEWAY_RAW, 3, 13)
    assert answer[42:70] == bytes(udp()[14:42])
    assert frames.checksum(answer[34:]) == 0
    assert passt_policy.refusal(ping(3), GATEWAY_RAW) == b""
    assert passt_policy.refusal(udp()[:20], GATEWAY_RAW) == b""


def test_the_frame_filter_holds_to_it_and_answers():
    vmm, to_guest = socket.socketpair()
    to_passt, passt = socket.socketpair()
    held = policy("tcp:192.0.2.7:443")
    between = frame_filter.FrameFilter(to_guest, to_passt, GUEST, held, GATEWAY)
    between.start()

    def framed(frame: bytes) -> bytes:
        return len(frame).to_bytes(4, "big") + frame

    with vmm, passt:
        vmm.settimeout(60)
        passt.settimeout(60)
        refused, allowed = bytes(udp()), bytes(tcp(SYN))
        vmm.sendall(framed(refused) + framed(allowed))
        assert passt.recv(4 + len(allowed), socket.MSG_WAITALL) == framed(allowed)
        answer = framed(passt_policy.refusal(memoryview(refused), GATEWAY_RAW))
        assert vmm.recv(len(answer), socket.MSG_WAITALL) == answer
        call = bytes(came(frames.TCP, frames.tcp(OTHER, GUEST, 80, SYN, from_port=5), OTHER))
        passt.sendall(framed(call))
        assert vmm.recv(4 + len(call), socket.MSG_WAITALL) == framed(call)
        reply = bytes(tcp(ACK, port=5, to=OTHER, from_port=80))
        vmm.sendall(framed(reply))
        assert passt.recv(4 + len(reply), socket.MSG_WAITALL) == framed(reply)
    between.close()
    assert (held.denied, between.forged) == (1, 0)
