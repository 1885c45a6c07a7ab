"""`bz bench` with real VMs: what it prints, and that nothing of it stays, also when it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from vm.verbs import PROGRAM, await_true

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="bz bench needs root"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed"),
]
BZ = str(Path(PROGRAM).with_name("bz"))
MOST_S = 300.0


def begin(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BZ, "bench", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def places() -> set[str]:
    """The directories of benchmarks that run."""
    return {name for name in os.listdir("/run") if name.startswith("bufferzone-bench-")}


def processes_of(place: str) -> list[str]:
    """Command lines that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if f"/run/{place}".encode() in line:
            found.append(line.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def test_a_quick_run_measures_what_was_asked_for_and_leaves_nothing():
    before = places()
    names = "runc,bufferzone-cold,bufferzone-warm,floor,lean-floor"
    words = ("--quick", "--runs", "1", "--sandboxes", "2", "--only", names, "--json")
    run = begin(*words)
    out, err = run.communicate(timeout=MOST_S)
    assert (run.returncode, err) == (0, "")
    found = json.loads(out)
    lean = found["runtimes"].pop("lean-floor")
    assert ("start" in lean["ms"]) != ("bz setup --guest lean" in lean["reason"])
    assert {name: value["reason"] for name, value in found["runtimes"].items()} == {
        "runc": "",
        "bufferzone-cold": "",
        "bufferzone-warm": "",
        "floor": "",
    }
    for name in ("runc", "bufferzone-warm"):
        value = found["runtimes"][name]
        assert set(value["ms"]) == {"start", "first exec", "exec", "state", "delete"}
        assert value["growth"]["sandboxes"] == 2
        assert set(value["starts_per_second"]) == {"1", "2"}
    warm = found["runtimes"]["bufferzone-warm"]
    assert warm["profile"]["processes_mib"].keys() >= {"QEMU", "virtiofsd", "shim", "waiter"}
    assert warm["profile"]["timeline_ms"][-1][0] == "mount the share"
    assert warm["one_more_mib"]["vmm"] > warm["one_more_mib"]["not_vmm"] > 0
    assert found["machine"]["image"]
    cold = found["runtimes"]["bufferzone-cold"]["guest"]
    assert cold["image_mib"] > 10 < cold["touched_mib"]
    measured = {bar["bar"] for bar in found["bars"] if bar["value"] is not None}
    assert "warm start to first byte, against the floor" in measured
    assert places() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_containers_and_removes_its_directory(number):
    before = places()
    run = begin("--runs", "1000", "--only", "bufferzone-warm")
    (place,) = await_true(lambda: places() - before, "the benchmark's directory")
    # it is in a mount namespace of the benchmark's own
    root = Path(f"/proc/{run.pid}/root/run", place, "bufferzone-warm", "root")
    await_true(lambda: list(root.glob("r*/console.log")), "a virtual machine", MOST_S)
    run.send_signal(number)
    assert run.communicate(timeout=180) == ("", "")
    assert run.returncode == 130
    assert place not in places()
    assert processes_of(place) == []
