"""Where fuzzing begins: for each target some input that is as it should be."""

from __future__ import annotations

import json
import struct

from bufferzone.cli.oci.spec import default_spec
from bufferzone.wire import agent, files, ttrpc
from security.fuzz_targets import MESSAGES

_RESPONSE = ttrpc.Response(status=ttrpc.status_of(ValueError("x")), payload=b"abc").encode()
_REQUEST = ttrpc.Request(service="s", method="m", payload=b"x", timeout_nano=5).encode()
_COUNTERS = {"memory.current": 5, "cpu.usage_usec": 7, "io.254:0.rbytes": 9, "pids.max": 1 << 63}
_MANIFEST = {"version": 1, "files": {"memory": {"name": "memory-1", "size": 1, "sha256": "0" * 64}}}


def packet(protocol: int, destination: tuple[int, ...], body: bytes) -> bytes:
    """An Ethernet frame with IPv4 in it, without checksums, which nobody looks at here."""
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0)
    return bytes(12) + b"\x08\x00" + ip + bytes([10, 0, 0, 2]) + bytes(destination) + body


SEEDS: dict[str, list[bytes]] = {
    "decode_message": [bytes([number]) + cls().encode() for number, cls in enumerate(MESSAGES)],
    "read_frames": [
        b"\x01\x09\x0a\x20"
        + ttrpc.encode_frame(1, ttrpc.RESPONSE, _RESPONSE)
        + ttrpc.encode_frame(3, 1, _REQUEST)
    ],
    "read_tree": [
        files.encode(files.Entry(files.DIRECTORY, ""))
        + files.encode(files.Entry(files.FILE, "a/b", mode=0o644, size=3))
        + b"abc"
        + files.encode(files.Entry(files.LINK, "c", size=1))
        + b"a"
        + files.encode(files.Entry(files.END, ""))
    ],
    "count": [
        agent.StatsResponse(
            counters=[agent.Counter(name=name, value=value) for name, value in _COUNTERS.items()]
        ).encode()
    ],
    "read_bundle": [json.dumps(default_spec(rootless=False)).encode()],
    "read_json": [
        json.dumps(default_spec(rootless=False)).encode(),
        b'[1.5e3, "\\ud800\\u0041", null, -0, NaN]',
    ],
    "read_toml": [b'# x\nkvm = "require"\nvcpus = 2\ntemplates = true\nallow = ["a", "b"]\n'],
    "read_policy": [b"tcp:192.0.2.0/24:443\nudp:[2001:db8::/32]:53-60\nany:10.0.0.1\nnone"],
    "hold_policy": [
        packet(6, (192, 0, 2, 9), struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 0x50, 2, 512, 0, 0)),
        packet(17, (198, 51, 100, 7), struct.pack("!HHHH", 40000, 53, 8, 0)),
        packet(1, (203, 0, 113, 1), bytes([8, 0, 0, 0, 0, 0, 0, 0])),
    ],
    "read_annotations": [b"memory=512MiB\nvcpus=2\nkvm=require\negress=tcp:192.0.2.1:80"],
    "read_manifest": [json.dumps(_MANIFEST).encode()],
}
