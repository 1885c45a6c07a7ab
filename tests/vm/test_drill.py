"""`bz drill` and `bz audit --measure` in real VMs: what is reached of the host, and what is called there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vm.verbs import PROGRAM

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
BZ = str(Path(PROGRAM).with_name("bz"))
MOST_S = 540.0


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BZ, *words], capture_output=True, text=True, timeout=MOST_S, check=False)


#: one of each kind, in the catalogue's order: all of them take minutes
CHOSEN = ("host-disk", "ptrace", "kernel-panic", "volume-link", "device-node", "fork-bomb")


def test_no_attack_reaches_the_host() -> None:
    before = {name for name in os.listdir("/run") if name.startswith("bufferzone-drill-")}
    done = run("drill", "--json", "--only", ",".join(CHOSEN))
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert tuple(found) == CHOSEN
    assert [each for each in found.values() if not each["tried"] or not each["contained"]] == []
    assert done.returncode == 0
    assert "VM" in found["kernel-panic"]["lost"]
    assert {name for name in os.listdir("/run") if name.startswith("bufferzone-drill-")} == before


def test_a_drill_where_there_is_no_wall_is_refused() -> None:
    done = run("drill", "--runtime", "/usr/sbin/runc")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the attacks reach this host (hint: --throw-away-host, if it is one)" in done.stderr


#: what a privileged container reaches by design, with any version of runc and in a guest's kernel
REACHING = ("core-pattern", "host-root", "ptrace", "sysctl", "device-node", "clock")


@pytest.mark.skipif(not shutil.which("runc"), reason="needs runc")
def test_the_same_attacks_reach_a_host_that_has_no_zone() -> None:
    """A sandbox of ours is the host that is thrown away: runc runs in it."""
    root = Path(PROGRAM).parents[1]
    inside = (
        "mount -o remount,rw /sys/fs/cgroup && exec /usr/bin/python3 -ISXutf8 bin/bz drill --json"
        f" --runtime {shutil.which('runc')} --throw-away-host --only {','.join(REACHING)}"
    )
    options = ("--memory", "2g", "--cap-add", "ALL", "--tmpfs", "/var/tmp:dev,suid,exec")
    words = (*options, "--volume", f"{root}:{root}:ro", "--workdir", str(root))
    done = run("run", *words, "--", "sh", "-c", inside)
    assert done.returncode == 1, done.stderr
    assert {each["name"]: each["contained"] for each in json.loads(done.stdout)} == dict.fromkeys(
        REACHING, False
    )


@pytest.mark.skipif(not shutil.which("strace") or not shutil.which("runc"), reason="needs strace and runc")
def test_the_meter_counts_every_workload_of_runc_and_ours() -> None:
    chosen = ("--runtime", "runc", "--runtime", "bufferzone", "--runtime", "bufferzone-block")
    done = run("audit", "--measure", "--json", "--seconds", "2", *chosen)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for runtime in ("runc", "bufferzone-warm", "bufferzone-block"):
        for workload, count in found[runtime].items():
            assert count.get("unique", 0) > 0, (runtime, workload, count)
            assert count["rounds"] > 0, (runtime, workload)
    ours = found["bufferzone-warm"]
    assert not {"new namespace", "mounts", "other processes", "rights"} & ours["forks"]["classes"].keys()
    assert ours["forks"]["calls"].get("execve", 0) == 0  # no program of the guest's is one of the host's
