"""What root's containers and a user's are both held to as scopes of their systemd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from host.conftest import podman, run

ROOT = Path("/sys/fs/cgroup")


def systemctl(*words: str, status: int = 0) -> str:
    return run("systemctl", *(() if os.geteuid() == 0 else ("--user",)), *words, status=status)


def make(image: str, name: str, *words: str) -> tuple[str, Path]:
    """A container that says how it ended; (its unit, its cgroup)."""
    script = "trap 'echo told; exit 7' TERM; trap 'echo usr1' USR1; echo up; while :; do sleep 1; done"
    podman("run", "-d", "--name", name, "--network", "none", *words, image, "sh", "-c", script)
    found = json.loads(podman("inspect", name))[0]
    line = Path(f"/proc/{found['State']['Pid']}/cgroup").read_text().strip()
    unit = f"libpod-{found['Id']}.scope"
    assert line.rpartition("/")[2] == unit, line
    return unit, ROOT / line[3:].lstrip("/")


def assert_unit_and_limits(image: str) -> None:
    """The unit is known, has the limits, keeps them over a reload, takes an update, and goes."""
    unit, cgroup = make(image, "scope", "--memory", "300m", "--pids-limit", "200")
    told = systemctl("show", unit, "--property", "ActiveState,Delegate,TasksMax,MemoryMax,ControlGroup,Slice")
    facts = dict(line.split("=", 1) for line in told.splitlines())
    assert (facts["ActiveState"], facts["Delegate"]) == ("active", "yes")
    assert facts["Slice"] == ("machine.slice" if os.geteuid() == 0 else "user.slice")
    assert facts["TasksMax"] == (cgroup / "pids.max").read_text().strip() == str(256 + 8 * 200)
    assert facts["MemoryMax"] == (cgroup / "memory.max").read_text().strip()
    comms = {
        Path(f"/proc/{pid}/comm").read_text().strip() for pid in (cgroup / "cgroup.procs").read_text().split()
    }
    assert "bufferzone-shim" in comms
    assert any("qemu" in comm for comm in comms), comms
    assert unit in run("systemd-cgls", "--no-pager", facts["ControlGroup"])
    status = systemctl("status", "--no-pager", "--full", unit)
    assert "/shim/__main__.py" in status
    assert "qemu-system-x86_64" in status
    systemctl("daemon-reload")
    assert (cgroup / "pids.max").read_text().strip() == facts["TasksMax"]
    assert (cgroup / "memory.max").read_text().strip() == facts["MemoryMax"]
    run("podman", "update", "--cpu-shares", "512", "scope")
    assert systemctl("show", unit, "--property", "CPUWeight") == "CPUWeight=20"
    systemctl("daemon-reload")
    assert (cgroup / "cpu.weight").read_text().strip() == "20"
    podman("rm", "--force", "--time", "0", "scope")
    assert_gone(unit, cgroup)


def assert_signals_arrive(image: str) -> None:
    """`kill` and `stop` reach the container, which ends by itself, with its own status."""
    unit, cgroup = make(image, "signals")
    # told as denied, and delivered: the kernel's own thread is nobody's to signal; `stop` then kills at once
    denied = os.geteuid() != 0 and has_kernel_thread(cgroup)
    systemctl("kill", "--signal", "USR1", unit, status=int(denied))
    await_log("signals", "usr1")
    systemctl("stop", unit)
    if denied:
        assert run("podman", "wait", "signals") in ("7", "137")
    else:
        assert run("podman", "wait", "signals") == "7"
        assert podman("logs", "signals").splitlines()[-1] == "told"
    podman("rm", "--force", "--time", "0", "signals")
    assert_gone(unit, cgroup)


def has_kernel_thread(cgroup: Path) -> bool:
    """Whether the kernel put a thread of its own in: KVM's, before it became a thread of the VMM."""
    pids = [pid for file in cgroup.rglob("cgroup.procs") for pid in file.read_text().split()]
    return any(not Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


def assert_kill_of_all_is_an_end(image: str) -> None:
    """SIGKILL to the unit ends shim, VM and container at once, as it does with another runtime."""
    unit, cgroup = make(image, "all")
    systemctl("kill", "--signal", "KILL", unit)
    assert run("podman", "wait", "all") == "137"
    podman("rm", "--force", "--time", "0", "all")
    assert_gone(unit, cgroup)


def assert_killed_shim_leaves_no_unit(image: str) -> None:
    unit, cgroup = make(image, "killed")
    for pid in (cgroup / "cgroup.procs").read_text().split():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "bufferzone-shim":
            os.kill(int(pid), signal.SIGKILL)
    podman("rm", "--force", "--time", "0", "killed")
    assert_gone(unit, cgroup)


def assert_gone(unit: str, cgroup: Path) -> None:
    """Right after `rm`, without any waiting."""
    assert not cgroup.exists()
    assert systemctl("show", unit, "--property", "LoadState") == "LoadState=not-found"


def await_log(name: str, line: str) -> None:
    """Until the container has printed it."""
    follow = ("podman", "logs", "--follow", name)
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            assert any(found.strip() == line for found in process.stdout), f"no line {line!r} from {name}"
        finally:
            process.kill()
