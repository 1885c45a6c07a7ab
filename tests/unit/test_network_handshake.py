"""The ACK that passt leaves out, and where it goes between passt's frames."""

from __future__ import annotations

import socket
import struct

import pytest

from bufferzone.network import frame_filter, handshake
from unit import frames

GUEST, PEER = "10.0.2.100", "10.0.2.2"
HERE, THERE = "02:62:7a:00:00:01", "02:62:7a:00:00:02"


def packet(flags: int, *, options: bytes = b"") -> bytes:
    tcp = struct.pack(
        "!HHIIBBHHH", 8080, 40000, 0xFFFFFFFF, 1234, (20 + len(options)) << 2, flags, 65480, 0, 0
    )
    return frames.ether(THERE, HERE, frames.IP, frames.ipv4(GUEST, PEER, frames.TCP, tcp + options))


def summed(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_a_syn_ack_is_answered_as_its_peer_would():
    ack = handshake.ack_of(memoryview(packet(0x12, options=b"\x02\x04\x05\xb4")))
    assert ack[:14] == packet(0x12)[6:12] + packet(0x12)[:6] + b"\x08\x00"
    assert (ack[26:30], ack[30:34]) == (socket.inet_aton(PEER), socket.inet_aton(GUEST))
    assert struct.unpack_from("!HHII", ack, 34) == (40000, 8080, 1234, 0)  # the sequence number wraps
    assert (ack[46] >> 4, ack[47]) == (5, 0x10)
    assert summed(ack[14:34]) == 0xFFFF
    assert summed(ack[26:34] + struct.pack("!HH", 6, 20) + ack[34:]) == 0xFFFF


@pytest.mark.parametrize("flags", [0x02, 0x10, 0x18, 0x11, 0x14, 0x13, 0x16])
def test_nothing_else_is_answered(flags):
    assert handshake.ack_of(memoryview(packet(flags))) == b""


@pytest.mark.parametrize("length", [0, 13, 14, 33, 34, 53])
def test_a_part_of_a_frame_is_none(length):
    assert handshake.ack_of(memoryview(packet(0x12)[:length])) == b""


def test_a_header_shorter_than_any_is_none():
    frame = bytearray(packet(0x12))
    frame[14] = 0x41
    assert handshake.ack_of(memoryview(frame)) == b""


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def test_an_ack_never_lands_within_a_frame_of_passts():
    vmm, to_guest = socket.socketpair()
    to_passt, passt = socket.socketpair()
    between = frame_filter.FrameFilter(to_guest, to_passt, GUEST)
    between.start()
    with vmm, passt:
        vmm.settimeout(60)
        passt.settimeout(60)
        data = framed(b"x" * 1000)
        passt.sendall(data[:500])
        vmm.sendall(framed(packet(0x12)))
        ack = framed(handshake.ack_of(memoryview(packet(0x12))))
        assert passt.recv(2000) == framed(packet(0x12))
        assert vmm.recv(len(ack), socket.MSG_WAITALL) == ack
        passt.sendall(data[500:])
        assert vmm.recv(len(data), socket.MSG_WAITALL) == data
    between.close()
