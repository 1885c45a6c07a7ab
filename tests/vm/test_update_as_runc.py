"""`update` beside runc's own: the same is taken and refused, and what was taken is the same limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vm.verbs import Runtime, bundle, config

ROOT = Path("/sys/fs/cgroup")
NAME = f"bufferzone-test-update-{os.getpid()}"
FILES = ("memory.max", "cpu.max", "cpu.weight", "pids.max")
LIMITS = {
    "memory": {"limit": 128 << 20},
    "cpu": {"shares": 1024, "quota": 80000, "period": 100000},
    "pids": {"limit": 50},
}

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not shutil.which("runc"), reason="runc is not installed: apt-get install runc"),
    pytest.mark.skipif(not (ROOT / "memory").is_dir(), reason="this host has no cgroup v1 for runc's half"),
]


class Pair:
    """The same container under both runtimes, with the same limits."""

    def __init__(self, directory: Path) -> None:
        self.ours = Runtime(directory / "root")
        self._runc = ["runc", "--root", str(directory / "runc")]
        for name in ("ours", "theirs"):
            linux = {**config("")["linux"], "resources": LIMITS, "cgroupsPath": f"/{NAME}-{name}"}
            linux["namespaces"] = [*linux["namespaces"], {"type": "cgroup"}]
            mounts = list(config("")["mounts"])
            if name == "ours":
                at = "/sys/fs/cgroup"
                mounts.append({"destination": at, "type": "cgroup", "source": "cgroup", "options": ["ro"]})
            bundle(directory / name, "exec sleep 100000", linux=linux, mounts=mounts)
        self.ours.run("updated", directory / "ours")
        null = subprocess.DEVNULL  # each its own: runc gives its stdio to the container's user
        words = [*self._runc, "run", "--detach", "--bundle", str(directory / "theirs"), "updated"]
        subprocess.run(words, stdin=null, stdout=null, stderr=null, check=True)

    def update(self, *words: str) -> tuple[int, int]:
        """The exit statuses of both."""
        theirs = subprocess.run([*self._runc, "update", *words, "updated"], capture_output=True, check=False)
        return self.ours.verb("update", *words, "updated").status, theirs.returncode

    def limits(self) -> dict[str, str]:
        """What the guest's kernel has."""
        script = f"cd /sys/fs/cgroup; for f in {' '.join(FILES)}; do cat $f; done"
        return dict(
            zip(FILES, self.ours.ok("exec", "updated", "sh", "-c", script).out.splitlines(), strict=True)
        )

    def runcs(self) -> dict[str, str]:
        """What runc has written on this host, as cgroup v2 spells it."""

        def read(controller: str, file: str) -> int:
            text = (ROOT / controller / f"{NAME}-theirs" / file).read_text().strip()
            return -1 if text == "max" else int(text)

        memory, shares = read("memory", "memory.limit_in_bytes"), read("cpu", "cpu.shares")
        quota, period = read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us")
        tasks = read("pids", "pids.max")
        return {
            "memory.max": "max" if memory >= 1 << 62 else str(memory),
            "cpu.max": f"{'max' if quota < 0 else quota} {period}",
            "cpu.weight": str(1 + (shares - 2) * 9999 // 262142),
            "pids.max": "max" if tasks < 0 else str(tasks),
        }

    def close(self) -> None:
        self.ours.close()
        subprocess.run([*self._runc, "delete", "--force", "updated"], capture_output=True, check=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("update"))
    yield pair
    pair.close()


@pytest.mark.parametrize(
    "words",
    [
        "--memory 90m",
        "--memory -1",
        "--memory 104857600",
        "--cpu-quota 50000",
        "--cpu-period 50000",
        "--cpu-quota -1",
        "--cpu-quota 30000 --cpu-period 100000",
        "--cpu-share 512",
        "--cpuset-cpus 0",
        "--cpuset-mems 0",
        "--pids-limit 30",
        "--pids-limit -1",
        "--pids-limit 40",
        "--kernel-memory 100m",
        "--cpu-quota 10",
        "--cpu-period 10",
        "--cpuset-cpus 777",
        "--memory much",
        "--memory 90m --memory-swap 80m",
    ],
)
def test_an_update_is_taken_and_refused_as_runc_does(pair, words):
    before = pair.limits()
    ours, theirs = pair.update(*words.split())
    assert ours == theirs
    # runc has changed a part, now and then, when it says that it cannot
    assert pair.limits() == (before if ours else pair.runcs())


@pytest.mark.parametrize(
    "zeros",
    [
        {"cpu": {"shares": 0, "quota": 0, "period": 0}, "memory": {"limit": 100 << 20}},  # dockerd's way
        {"pids": {"limit": 0}},
        {"memory": {"limit": 0}, "pids": {"limit": 45}},
    ],
)
def test_a_limit_of_zero_in_an_update_leaves_what_is_set(pair, tmp_path, zeros):
    assert pair.update("--memory", "90m", "--cpu-quota", "50000", "--pids-limit", "40") == (0, 0)
    file = tmp_path / "resources.json"
    file.write_text(json.dumps(zeros))
    assert pair.update("--resources", str(file)) == (0, 0)
    assert pair.limits() == pair.runcs()
    assert pair.limits()["cpu.max"].startswith("50000 ")
