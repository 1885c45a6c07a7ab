"""D-Bus messages: the bytes are the specification's, and any other bytes are an error and never a crash."""

from __future__ import annotations

import random

import pytest

from bufferzone.errors import HostError
from bufferzone.systemd import dbus

#: GLib's marshalling of that call (Gio.DBusMessage.to_blob)
GOLDEN = bytes.fromhex(
    "6c01000118000000030000007100000001016f00190000002f6f72672f667265656465736b746f702f737973"
    "74656d64310000000000000002017300200000006f72672e667265656465736b746f702e73797374656d6431"
    "2e4d616e6167657200000000000000000801670002737300030173000800000053746f70556e697400000000"
    "0000000007000000782e73636f706500070000007265706c61636500"
)


def stop_unit():
    fields = {
        dbus.PATH: "/org/freedesktop/systemd1",
        dbus.INTERFACE: "org.freedesktop.systemd1.Manager",
        dbus.MEMBER: "StopUnit",
        dbus.SIGNATURE: "ss",
    }
    return dbus.Message(dbus.CALL, 3, fields, ["x.scope", "replace"])


def test_a_call_is_encoded_as_others_encode_it():
    theirs, ours = dbus.decode(GOLDEN), dbus.decode(stop_unit().encode())
    assert len(GOLDEN) == len(stop_unit().encode())  # the order of fields is free
    assert (ours.kind, ours.serial, ours.fields, ours.body) == (
        theirs.kind,
        theirs.serial,
        theirs.fields,
        theirs.body,
    )


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("", []),
        ("ybnqiuxtd", [255, 1, -2, 65535, -3, 4, -5, (1 << 64) - 1, 0.5]),
        ("sog", ["grüße", "/a/b", "a(sv)"]),
        ("a(st)ay", [[("/dev/block/8:0", 7), ("x", 8)], [1, 2, 3]]),
        ("sa(sa(sv))", ["", []]),
        ("aau(y(s))", [[[1], [], [2, 3]], (1, ("deep",))]),
    ],
)
def test_values_of_every_type_survive(signature, values):
    fields = {dbus.PATH: "/", dbus.SIGNATURE: signature} if signature else {dbus.PATH: "/"}
    data = dbus.Message(dbus.SIGNAL, 9, fields, values).encode()
    assert dbus.size_of(data[: dbus.FIXED]) == len(data)
    assert dbus.decode(data).body == values


def test_a_variant_says_its_type():
    fields = {dbus.PATH: "/", dbus.SIGNATURE: "a(sv)"}
    data = dbus.Message(dbus.CALL, 1, fields, [[("PIDs", ("au", [7])), ("Delegate", ("b", True))]]).encode()
    assert dbus.decode(data).body == [[("PIDs", [7]), ("Delegate", 1)]]


@pytest.mark.parametrize("head", [b"B\1\0\1" + bytes(12), b"l\1\0\2" + bytes(12), b"l\1\0\1" + b"\xff" * 12])
def test_a_head_that_is_none_is_an_error(head):
    with pytest.raises(HostError, match="not D-Bus"):
        dbus.size_of(head)


def test_damaged_messages_are_errors_and_nothing_else():
    source, data, refused = random.Random(7), stop_unit().encode(), 0
    for _ in range(2000):
        damaged = bytearray(data[: source.randrange(dbus.FIXED, len(data) + 1)])
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        try:
            dbus.decode(bytes(damaged))
        except HostError:
            refused += 1
    assert 1000 < refused < 2000
