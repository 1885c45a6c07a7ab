"""The picture of `bz bench`: drawn where matplotlib is installed, a clear line where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bufferzone.bench import plot
from bufferzone.errors import HostError

PYTHON = "/usr/bin/python3"
DRAW = """
import json, sys
sys.path.insert(0, sys.argv[1])
from bufferzone.bench import plot
plot.draw(json.loads(sys.argv[2]), sys.argv[3], plot.load(sys.argv[4]))
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


@pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/matplotlib").is_dir(), reason="python3-matplotlib is missing"
)
def test_a_report_becomes_a_png_also_without_site_packages(tmp_path):
    source, path = str(Path(plot.__file__).parents[2]), tmp_path / "picture.png"
    words = [PYTHON, "-IS", "-c", DRAW, source, json.dumps(REPORT), str(path), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
