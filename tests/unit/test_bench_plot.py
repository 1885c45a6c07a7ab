"""The picture of `bz bench`: drawn where matplotlib is installed, a clear line where it is not."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from bufferzone.bench import plot
from bufferzone.errors import HostError


def _python() -> list[str]:
    """One that has matplotlib: Debian's without site-packages, as our programs start, else ours."""
    if Path("/usr/lib/python3/dist-packages/matplotlib").is_dir():
        return ["/usr/bin/python3", "-IS"]
    return [sys.executable, "-I"] if importlib.util.find_spec("matplotlib") else []


DRAW = """
import json, sys
sys.path.insert(0, sys.argv[1])
from bufferzone.bench import plot
from bufferzone.bench import meter
draw = {"plot": plot.draw, "meter": meter.draw}[sys.argv[5]]
draw(json.loads(sys.argv[2]), sys.argv[3], plot.load(sys.argv[4]))
"""
REPORT = {
    "machine": {"cpus": 2, "cpu": "a CPU", "accelerator": "tcg"},
    "runtimes": {
        "runc": {
            "measured": True,
            "ms": {"start": {"n": 3, "p50": 30.0, "p99": 40.0}},
            "growth": {"starts": [30.0, 31.0]},
            "one_more_mib": {"vmm": 0.0, "not_vmm": 0.1, "unmapped": 0.0},
        },
        "floor": {
            "measured": True,
            "ms": {"start": {"n": 3, "p50": 400.0, "p99": 500.0}},
            "growth": {},
            "one_more_mib": {},
        },
        "runsc": {"measured": False},
    },
}


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import of it fails
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("MPLCONFIGDIR", "")
    with pytest.raises(HostError, match="cannot draw") as caught:
        plot.load(str(tmp_path))
    assert caught.value.hint == "apt-get install python3-matplotlib"


def _count(unique: int, per_round: float | None) -> dict[str, object]:
    return {"unique": unique, "per_round": per_round, "classes": {}}


COUNTED = {
    "runc": {"idle": _count(19, 26.0), "files": _count(28, 132.0)},
    "bufferzone-warm": {"idle": _count(11, 230.8), "files": _count(19, None)},
    "crun": {"idle": {"reason": "it did not start"}},
    "runsc": {"reason": "not installed"},
}


def _size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG that is whole: signature, every chunk's sum, all its lines; PNG, RFC 2083."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, kinds, pixels, header = 8, [], b"", (0, 0, 0, 0)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", data, at + 8 + length)[0]
        if kind == b"IHDR":
            header = struct.unpack_from(">IIBB", body)
        kinds.append(kind)
        pixels += body if kind == b"IDAT" else b""
        at += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    width, height, depth, colours = header
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    assert len(zlib.decompress(pixels)) == height * (1 + (width * depth * channels + 7) // 8)
    return width, height


@pytest.mark.skipif(not _python(), reason="matplotlib is missing")
@pytest.mark.parametrize(("what", "facts"), [("plot", REPORT), ("meter", COUNTED)])
def test_a_report_becomes_a_png_that_is_whole(what, facts, tmp_path):
    source, path = str(Path(plot.__file__).parents[2]), tmp_path / "picture.png"
    words = [*_python(), "-c", DRAW, source, json.dumps(facts), str(path), str(tmp_path), what]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    width, height = _size(path.read_bytes())
    assert width > height > 300
