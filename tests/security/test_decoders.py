"""Decoders of what others wrote, with input that was made up: a short run of each target of the fuzzer, and
properties of messages. Seeds are fixed: the suite is the same each time, and fuzz.py runs for hours.
"""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bufferzone.wire import ttrpc
from bufferzone.wire.proto import Field, Message
from security import fuzz_seeds, fuzz_targets

SHORT = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
EVERY = pytest.mark.parametrize("name", fuzz_targets.TARGETS)
_SCALARS = {
    "string": st.text(st.characters(codec="utf-8"), max_size=20),
    "bytes": st.binary(max_size=20),
    "bool": st.booleans(),
    "uint": st.integers(0, (1 << 64) - 1),
    "int": st.integers(-(1 << 63), (1 << 63) - 1),
    "double": st.floats(allow_nan=False),
    "map": st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
}


def changed(seed: bytes, generator: random.Random) -> bytes:
    """The seed with a few bytes flipped, cut, doubled or put in."""
    data = bytearray(seed)
    for _ in range(generator.randint(1, 6)):
        at = generator.randrange(len(data) + 1)
        until = min(len(data), at + generator.randint(1, 8))
        how = generator.randrange(4)
        if how == 0:
            data[at:until] = generator.randbytes(until - at)
        elif how == 1:
            del data[at:until]
        elif how == 2:
            data[at:at] = data[at:until]
        else:
            data[at:at] = generator.choice(
                [b"\xff" * 9, b"\0", b"[" * 40, b"{", b'"', b"\x80", b"..", b"\n", b"-"]
            )
    return bytes(data)


def assert_taken_or_refused(name: str, data: bytes) -> None:
    """A target fails by itself, by an assertion or whatever else it raises."""
    fuzz_targets.TARGETS[name](data)


@EVERY
def test_a_decoder_takes_what_is_right_and_refuses_what_was_changed(name):
    generator = random.Random(name)
    for seed in fuzz_seeds.SEEDS[name]:
        assert_taken_or_refused(name, seed)
    for _ in range(400):
        assert_taken_or_refused(name, changed(generator.choice(fuzz_seeds.SEEDS[name]), generator))


@EVERY
@SHORT
@given(data=st.binary(max_size=300))
def test_a_decoder_takes_any_bytes(name, data):
    assert_taken_or_refused(name, data)


def values(field: Field) -> st.SearchStrategy:
    one = message(field.nested) if field.kind == "message" else _SCALARS[field.kind]
    if field.repeated:
        return st.lists(one, max_size=3)
    return st.none() | one if field.kind == "message" else one


def message(cls: type[Message]) -> st.SearchStrategy:
    return st.builds(cls, **{field.name: values(field) for field in cls._fields})


@pytest.mark.parametrize("cls", fuzz_targets.MESSAGES, ids=lambda cls: cls.__name__)
def test_a_message_arrives_as_it_was_sent(cls):
    @settings(SHORT, max_examples=15)
    @given(sent=message(cls))
    def travel(sent):
        assert cls.decode(sent.encode()) == sent

    travel()


@SHORT
@given(
    sent=st.lists(
        st.tuples(
            st.integers(0, (1 << 32) - 1),
            st.sampled_from([1, 2, 3]),
            st.integers(0, 255),
            st.binary(max_size=50),
        ),
        max_size=6,
    ),
    sizes=st.lists(st.integers(1, 40), max_size=30),
)
def test_frames_arrive_whole_however_the_stream_is_cut(sent, sizes):
    stream = b"".join(ttrpc.encode_frame(number, kind, data, flags) for number, kind, flags, data in sent)
    reader, got, at = ttrpc.FrameReader(), [], 0
    for size in (*sizes, len(stream)):
        got += reader.feed(stream[at : at + size])
        at += size
    assert got == sent


def test_a_frame_that_comes_in_pieces_costs_a_few_times_its_size():
    reader = ttrpc.FrameReader()
    reader.feed(ttrpc.HEADER.pack(ttrpc.MAX_PAYLOAD, 1, ttrpc.RESPONSE, 0))
    piece = b"x" * (64 << 10)
    tracemalloc.start()
    frames = sum(len(reader.feed(piece)) for _ in range(64))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert frames == 1
    assert most < 4 * ttrpc.MAX_PAYLOAD
