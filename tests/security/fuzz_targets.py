"""What is fuzzed: every decoder of bytes that a guest, an image, a bundle or a caller wrote, as a function of
bytes that returns or fails an assertion. Whatever else it raises is a finding.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable

from bufferzone import egress, jsontext, oci, toml
from bufferzone.errors import BufferzoneError, GuestError, SpecError
from bufferzone.network import passt_policy
from bufferzone.oci import overrides
from bufferzone.snapshot import manifest
from bufferzone.wire import agent, files, locks, metrics, network, shim, task, ttrpc
from bufferzone.wire.proto import DecodeError, Message

_MODULES = (agent, locks, metrics, network, shim, task, ttrpc)
#: every message of wire/
MESSAGES: tuple[type[Message], ...] = tuple(
    value
    for module in _MODULES
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Message) and value.__module__ == module.__name__
)
MOST_PIECES = 64


def _is_one_line(text: str) -> None:
    """As every error is told."""
    assert "\n" not in text


def decode_message(data: bytes) -> None:
    """The first byte chooses the message. What decodes is the same after a journey."""
    if not data:
        return
    cls = MESSAGES[data[0] % len(MESSAGES)]
    try:
        value = cls.decode(data[1:])
    except DecodeError:
        return
    again = cls.decode(value.encode())
    # a NaN is not equal to itself
    assert again == value or repr(again) == repr(value)


def read_frames(data: bytes) -> None:
    """In pieces, whose sizes the first bytes say, as at once; an envelope within is a message or none."""
    cuts, stream = data[:4], data[4:]
    whole, pieces = _frames([stream]), _frames(_cut(stream, cuts))
    assert whole == pieces
    for frame in whole[0]:
        try:
            if frame.type == ttrpc.REQUEST:
                ttrpc.Request.decode(frame.payload)
            else:
                status = ttrpc.Response.decode(frame.payload).status
                error = ttrpc.error_of(status or ttrpc.Status(), GuestError)
                assert isinstance(error, BufferzoneError)
        except DecodeError:
            continue


def _cut(stream: bytes, sizes: bytes) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(stream[at : at + size])
        at += size
    return [*found, stream[at:]]


def _frames(pieces: list[bytes]) -> tuple[list[ttrpc.Frame], bool]:
    """The frames up to the end or to what is none, and which of both came."""
    reader, found = ttrpc.FrameReader(), []
    for piece in pieces:
        try:
            found += reader.feed(piece)
        except ttrpc.ProtocolError:
            # what came before it in the same piece is not handed out: the connection is of no further use
            return [], True
    return found, False


def read_tree(data: bytes) -> None:
    """A tree of files that the guest sends: names lead down, contents are as long as said."""
    read = io.BytesIO(data).read
    try:
        for entry in files.entries(read):
            parts = entry.name.split("/") if entry.name else []
            assert not {"", ".", ".."} & set(parts)
            assert "\0" not in entry.name
            assert entry.mode <= 0o777
            for piece in files.content(read, entry.size):
                assert len(piece) <= files.CHUNK
    except GuestError as error:
        _is_one_line(error.line())


def count(data: bytes) -> None:
    """A guest's counters become metrics and events."""
    try:
        answer = agent.StatsResponse.decode(data)
    except DecodeError:
        return
    found = metrics.from_counters({each.name: each.value for each in answer.counters})
    json.dumps(metrics.to_events(metrics.Metrics.decode(found.encode())))


def read_bundle(data: bytes) -> None:
    """A config.json: checked, or one line that says where it is wrong."""
    try:
        oci.validate(oci.parse_object(data, "config.json"))
    except SpecError as error:
        _is_one_line(error.line())


def read_json(data: bytes) -> None:
    """Our JSON takes what Python's takes, and makes the same of it."""
    text = data.decode("utf-8", "replace")
    assert _parsed(jsontext.loads, text) == _parsed(json.loads, text)


def _parsed(parse: Callable[[str], object], text: str) -> str:
    try:
        return repr(parse(text))
    except RecursionError:
        return "too deep"
    except ValueError:
        return "no JSON"


def read_toml(data: bytes) -> None:
    """A file of settings: the short way reads what tomllib reads."""
    import tomllib

    try:
        expected: object = tomllib.loads(data.decode("utf-8"))
    except ValueError:
        expected = None
    try:
        found: object = toml.parse(data)
    except ValueError:
        found = None
    assert repr(found) == repr(expected)


def read_policy(data: bytes) -> None:
    """Rules of egress, which an annotation may say: what parses is printed as what parses to the same."""
    for line in data.decode("utf-8", "replace").split("\n")[:MOST_PIECES]:
        try:
            rule = egress.parse(line)
        except ValueError:
            continue
        assert egress.parse(str(rule)) == rule
        assert rule.contains(rule)


def read_annotations(data: bytes) -> None:
    """Annotations of an image or a bundle: settings, or one line."""
    rows = (line.partition("=") for line in data.decode("utf-8", "replace").split("\n")[:MOST_PIECES])
    try:
        overrides.parse_annotations({f"bufferzone.{key}": value for key, _, value in rows})
    except SpecError as error:
        _is_one_line(error.line())


def read_manifest(data: bytes) -> None:
    """The manifest of a checkpoint that somebody else wrote."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    for check in (manifest.check_head, manifest.check):
        try:
            check(value)
        except ValueError as error:
            _is_one_line(str(error))


#: what the packets of `hold_policy` may reach, as `_is_ruled_in` has it
RULES = ("tcp:192.0.2.0/24:443", "udp:198.51.100.7:53-60", "icmp:203.0.113.1")
_GATEWAY = bytes([10, 0, 0, 1])


def _is_ruled_in(frame: bytes) -> bool:
    """Read by eye: where each byte lies in an Ethernet frame with IPv4 in it."""
    protocol, destination, port = frame[23], frame[30:34], int.from_bytes(frame[36:38], "big")
    if frame[14] != 0x45 or frame[20] & 0x3F or frame[21]:
        return False
    if protocol == 6:
        return destination[:3] == bytes([192, 0, 2]) and port == 443
    if protocol == 17:
        return destination == bytes([198, 51, 100, 7]) and 53 <= port <= 60
    return protocol == 1 and destination == bytes([203, 0, 113, 1]) and frame[34] == 8


def hold_policy(data: bytes) -> None:
    """A guest's packet behind passt: only what a rule allows passes; what is answered is a whole packet."""
    policy = passt_policy.Policy([egress.parse(rule) for rule in RULES])
    frame = memoryview(data)
    assert not policy.allows(frame) or _is_ruled_in(data)
    answer = passt_policy.refusal(frame, _GATEWAY)
    if answer:
        assert len(answer) == 14 + int.from_bytes(answer[16:18], "big") <= 70
        assert passt_policy.checksum(answer[14:34]) == bytes(2)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        decode_message,
        read_frames,
        read_tree,
        count,
        read_bundle,
        read_json,
        read_toml,
        read_policy,
        hold_policy,
        read_annotations,
        read_manifest,
    )
}
