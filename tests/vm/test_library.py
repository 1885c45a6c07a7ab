"""The Python library in real VMs: limits that hold there, a directory as an image, the blocks of its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.model import ImageRef
from flow.cli import make_rootfs
from vm.podman import ROOT
from vm.warm import Warm, for_a_module

pytestmark = pytest.mark.vm

BLOCK = re.compile(r"^```python\n((?:.*\n)*?)```$", re.MULTILINE)
PAGE = ROOT / "docs" / "library.md"
HEAD = """
import json, sys
sys.path.insert(0, {source!r})
from bufferzone import state
state.runtime_root = lambda flag="": {root!r}
"""
LIMITED = """
import bufferzone
with bufferzone.Sandbox(memory_mib=256, cpus=1) as sb:
    def python(code, **more):
        r = sb.run(["python3", "-c", code], **more)
        return [r.verdict, r.signal, r.peak_memory_mib]
    print(json.dumps({
        "kernel": sb.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout,
        "small": python("x = bytearray(200 << 20)", memory_mib=48),
        "child": python("import os; pid = os.fork(); pid or bytearray(200 << 20); os.wait()", memory_mib=48),
        "whole": python("x = [bytearray(1 << 20) for _ in range(1000)]"),
        "fits": python("x = bytearray(16 << 20)", memory_mib=64),
        "cpu": python("while True: pass", cpu_time_s=0.5),
        "time": python("import time; time.sleep(1000)", timeout_s=2),
        "stats": sb.stats().memory_mib,
        "image": sb.info().accelerator,
    }))
"""
DIRECTORY = """
import bufferzone
with bufferzone.Sandbox({rootfs!r}, volumes={{{volume!r}: "/v"}}) as sb:
    sb.files.write("/bin/new", "x")
    sb.files.write("/v/told", "y")
    said = sb.run(["sh", "-c", "ls /bin; touch /proc/sys/x 2>/dev/null; echo $?"], timeout_s=60).stdout
    print(json.dumps(said.split()))
"""


SAVED = """
import time
import bufferzone
from bufferzone.workload import snapshots
with bufferzone.Sandbox({rootfs!r}, memory_mib=128) as sb:
    sb.files.write("/prepared", "once")
    sb.snapshot("ready")
    copies = sb.fork(1)
    told = [copies[0].run(["cat", "/prepared"]).stdout]
    copies[0].close()
restored = [bufferzone.Sandbox.from_snapshot("ready") for _ in range(2)]
told += [box.run(["cat", "/prepared"]).stdout for box in restored]
random = {{box.run(["cat", "/proc/sys/kernel/random/uuid"]).stdout for box in restored}}
for box in restored:
    box.close()
snapshots.remove("ready")
print(json.dumps([told, len(random)]))
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef) -> Iterator[Warm]:
    yield from for_a_module(tmp_path_factory.mktemp("library"), guest_image)


def python(warm: Warm, program: str, cwd: Path | None = None) -> str:
    """What a Python program with this checkout's library prints; nothing may be left of its sandboxes."""
    head = HEAD.format(source=str(ROOT / "src"), root=str(warm.runtime.root))
    words = [*warm.before, "/usr/bin/python3", "-IS", "-c", head + program]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in warm.runtime.root.iterdir() if path.is_dir()] == []
    assert os.listdir(warm.store.parent / "sandboxes") == []
    return done.stdout


def test_limits_hold_in_a_vm_for_a_program_and_all_it_starts(warm: Warm):
    found: dict[str, Any] = json.loads(python(warm, LIMITED))
    assert found["kernel"] != Path("/proc/sys/kernel/random/boot_id").read_text()
    assert found["small"][:2] == ["memory-limit", 9]
    assert found["child"][0] == "memory-limit"
    assert found["whole"][0] == "memory-limit"
    assert found["fits"][0] == "ok"
    assert 16 < found["fits"][2] < 64
    assert found["cpu"][:2] == ["cpu-limit", 9]
    assert found["time"][:2] == ["timeout", 9]
    assert 0 < found["stats"] < 256


def test_a_directory_is_an_image_of_which_nothing_is_changed(warm: Warm, tmp_path: Path):
    make_rootfs(tmp_path / "rootfs")
    (tmp_path / "v").mkdir()
    program = DIRECTORY.format(rootfs=str(tmp_path / "rootfs"), volume=str(tmp_path / "v"))
    said = json.loads(python(warm, program))
    assert {"new", "busybox"} <= set(said)
    assert not (tmp_path / "rootfs/bin/new").exists()
    assert (tmp_path / "v/told").read_text() == "y"


def test_what_was_saved_goes_on_in_vms_of_its_own_with_other_random_numbers(warm: Warm, tmp_path: Path):
    make_rootfs(tmp_path / "rootfs")
    told, different = json.loads(python(warm, SAVED.format(rootfs=str(tmp_path / "rootfs"))))
    assert told == ["once"] * 3
    assert different == 2


@pytest.mark.parametrize("number", range(len(BLOCK.findall(PAGE.read_text()))))
def test_a_block_of_the_page_runs_as_it_stands(warm: Warm, tmp_path: Path, number: int):
    assert python(warm, BLOCK.findall(PAGE.read_text())[number], tmp_path) == ""
