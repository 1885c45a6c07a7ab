"""Resources with the real programs: who hears of an out-of-memory kill, what is counted, what is limited."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from vm.podman import read_until
from vm.verbs import await_true

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

GROW = "x=a; while :; do x=$x$x; done"

#: what `runc events --stats` prints, as far as it has something to say on cgroup v2
RUNC: dict[str, set[str]] = {
    "cpu": {"usage", "throttling"},
    "cpuset": set(),
    "memory": {"cache", "usage", "swap", "kernel", "kernelTCP", "raw"},
    "pids": {"current", "limit"},
    "blkio": set(),
    "hugetlb": set(),
    "intel_rdt": set(),
    "network_interfaces": set(),
}


def verb(podman, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A verb of the runtime, as Podman calls it."""
    command = [str(podman.program), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == status, (words, done.stdout, done.stderr)
    return done


def identity(podman, name: str) -> str:
    return str(podman.inspect(name)["Id"])


def test_a_container_that_runs_out_of_memory_is_killed_and_podman_knows_why(podman):
    podman("run", "--name", "hungry", "--memory", "64m", podman.image, "sh", "-c", GROW, status=137)
    state = podman.inspect("hungry")["State"]
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)


def test_a_child_that_runs_out_of_memory_is_told_of_and_the_container_lives_on(podman):
    script = f"({GROW}); echo child $?; exit 3"
    done = podman("run", "--name", "parent", "--memory", "64m", podman.image, "sh", "-c", script, status=3)
    assert done.text == "child 137"
    assert podman.inspect("parent")["State"]["OOMKilled"] is True


def test_a_container_that_is_killed_otherwise_did_not_run_out_of_memory(podman):
    podman("run", "--name", "shot", "--detach", "--memory", "64m", podman.image, "sleep", "1000")
    podman("kill", "--signal", "KILL", "shot")
    podman("wait", "shot")
    assert podman.inspect("shot")["State"]["OOMKilled"] is False


def test_events_tells_of_a_kill_and_ends_with_the_container(podman):
    script = f"read go; ({GROW}); read more"
    words = ("--name", "told", "--interactive", "--detach", "--memory", "64m")
    podman("run", *words, podman.image, "sh", "-c", "mkfifo /go; sh -c '" + script + "' <>/go")
    command = [str(podman.program), "events", "--interval", "1h", identity(podman, "told")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as events:
        first = json.loads(read_until(events.stdout, b"\n"))
        assert first["type"] == "stats"
        podman("exec", "told", "sh", "-c", "echo > /go")
        second = json.loads(read_until(events.stdout, b"\n"))
        assert second == {"type": "oom", "id": identity(podman, "told")}
        podman("kill", "told")
        assert events.wait(30) == 0


def places(podman, name: str) -> dict[str, Path]:
    """The container's cgroup on this host, by file: where each is found."""
    found = Path("/sys/fs/cgroup").glob(f"*{podman.parent}/*{identity(podman, name)}/*")
    return {path.name: path for path in found if path.is_file()}


def host(podman, name: str, file: str) -> str:
    """A file of the container's cgroup on this host."""
    return places(podman, name)[file].read_text().strip()


def cpu_time_ns(pids: list[str]) -> int:
    """What these processes have used, by their own count in ticks of 10 ms."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(row[11]) + int(row[12]) for row in fields) * 10_000_000


def guest(podman, name: str, file: str) -> str:
    """The same in the guest."""
    return str(podman("exec", name, "cat", f"/sys/fs/cgroup/{file}").text)


@pytest.fixture(scope="module")
def limited(podman, nothing_left):
    """A container with limits that holds 40 MiB, and more once somebody writes into /go."""
    words = ["--detach", "--name", "limited", "--memory", "128m", "--pids-limit", "50", "--cpus", "0.5"]
    words += ["--cpuset-cpus", "0", "--cpu-shares", "512", "--tmpfs", "/mem:size=100m"]
    podman(
        "run", *words, podman.image, "sh", "-c", "dd if=/dev/zero of=/mem/a bs=1M count=40; exec sleep 1000"
    )
    if "memory.limit_in_bytes" not in places(podman, "limited"):
        pytest.skip("this host has no cgroup v1 memory controller")
    return "limited"


def test_the_hosts_cgroup_bounds_the_whole_vm_with_room_for_its_own_needs(podman, limited):
    names = {
        Path(f"/proc/{pid}/comm").read_text().strip() for pid in host(podman, limited, "cgroup.procs").split()
    }
    assert {"bufferzone-shim", "virtiofsd"} < names
    assert any(name.startswith("qemu") for name in names)
    assert int(host(podman, limited, "memory.limit_in_bytes")) == (512 + 8 + 512) << 20
    assert (host(podman, limited, "cpu.cfs_quota_us"), host(podman, limited, "cpu.shares")) == (
        "60000",
        "512",
    )
    assert int(host(podman, limited, "pids.max")) == 256 + 8 * 50
    assert host(podman, limited, "cpuset.cpus") == "0"


def test_the_guests_cgroup_has_the_limits_as_they_were_asked_for(podman, limited):
    assert guest(podman, limited, "memory.max") == str(128 << 20)
    assert guest(podman, limited, "cpu.max") == "50000 100000"
    assert guest(podman, limited, "pids.max") == "50"
    assert podman("exec", limited, "nproc").text == "1"


def test_update_changes_limits_in_the_guest_and_on_the_host(podman, limited):
    id = identity(podman, limited)
    verb(podman, "update", "--memory", "100m", "--cpu-quota", "80000", "--pids-limit", "60", id)
    assert guest(podman, limited, "memory.max") == str(100 << 20)
    assert guest(podman, limited, "cpu.max") == "80000 100000"
    assert guest(podman, limited, "pids.max") == "60"
    assert host(podman, limited, "cpu.cfs_quota_us") == "90000"
    assert int(host(podman, limited, "pids.max")) == 256 + 8 * 60


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--memory", "2g"), "the VM has 512 MiB, of which a container can have 440"),
        (("--memory", "20m"), "unable to set memory limit to 20971520 (current usage: 4"),
        (("--memory", "3m"), "unable to set memory limit to 3145728 (current usage: 4"),
        (("--cpu-quota", "300000"), "cannot set the CPU limit to 3: the VM has 1"),
        (("--cpuset-cpus", "99"), "cannot set cpuset.cpus to 99"),
        (("--memory", "200m", "--memory-swap", "100m"), "memory+swap limit should be >= memory limit"),
    ],
)
def test_an_update_that_cannot_be_is_one_line_and_changes_nothing(podman, limited, words, text):
    def everything() -> list[str]:
        ours = ("memory.limit_in_bytes", "cpu.cfs_quota_us", "pids.max", "cpuset.cpus")
        theirs = ("memory.max", "memory.swap.max", "cpu.max", "pids.max")
        return [*(host(podman, limited, f) for f in ours), *(guest(podman, limited, f) for f in theirs)]

    before = everything()
    done = verb(podman, "update", "--pids-limit", "33", *words, identity(podman, limited), status=1)
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 2  # the line, and where it has one its hint
    assert everything() == before


def test_an_annotation_which_an_image_can_carry_loosens_no_limit_of_the_host(podman):
    notes = ("io.kubernetes.cri.container-type=container", "bufferzone.memory=1024", "bufferzone.vcpus=2")
    words = ["--detach", "--name", "claims", "--memory", "128m", "--pids-limit", "50", "--cpus", "0.5"]
    words += [word for note in notes for word in ("--annotation", note)]
    podman("run", *words, podman.image, "sleep", "1000")
    if "memory.limit_in_bytes" not in places(podman, "claims"):
        pytest.skip("this host has no cgroup v1 memory controller")
    assert int(host(podman, "claims", "memory.limit_in_bytes")) == (512 + 8 + 512) << 20
    assert host(podman, "claims", "cpu.cfs_quota_us") == "60000"
    assert int(host(podman, "claims", "pids.max")) == 256 + 8 * 50
    assert int(podman("exec", "claims", "grep", "MemTotal", "/proc/meminfo").text.split()[1]) > 900 << 10


def test_podman_stats_shows_what_the_whole_vm_uses(podman, limited):
    podman("exec", limited, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    form = '{"mem": "{{.MemUsage}}", "pids": {{.PIDs}}, "cpu": "{{.CPUNano}}", "limit": "{{.MemLimit}}"}'
    shown = json.loads(podman("stats", "--no-stream", "--format", form, limited).text)
    used = float(shown["mem"].split("MB")[0])
    assert used == pytest.approx(int(host(podman, limited, "memory.usage_in_bytes")) / 1e6, rel=0.2)
    assert used > 40 + 50  # what the container holds, and QEMU
    spent = cpu_time_ns(host(podman, limited, "cgroup.procs").split())
    assert spent > 0
    assert int(host(podman, limited, "cpuacct.usage")) > 0.9 * spent  # QEMU, virtiofsd and shim are in it
    # threads of QEMU's pool come and go
    assert shown["pids"] == pytest.approx(int(host(podman, limited, "pids.current")), abs=5)
    assert shown["pids"] > 9  # of the container itself there are two


def test_events_has_the_keys_of_runc(podman, limited):
    found = json.loads(verb(podman, "events", "--stats", identity(podman, limited)).stdout)["data"]
    assert found.keys() == RUNC.keys()
    for section, keys in RUNC.items():
        assert found[section] is None or keys <= found[section].keys()
    assert found["memory"]["usage"]["usage"] > 40 << 20
    assert found["memory"]["usage"]["limit"] == 100 << 20
    assert found["pids"]["limit"] == 60
    assert found["cpu"]["usage"]["total"] == pytest.approx(
        found["cpu"]["usage"]["user"] + found["cpu"]["usage"]["kernel"], rel=0.1
    )
    assert found["cpu"]["throttling"]["periods"] > 0


@pytest.mark.parametrize("templates", ["true", "false"], ids=["warm", "cold"])
def test_memory_that_the_guest_frees_goes_back_to_the_host(podman, templates):
    name = f"frees-{templates}"
    words = ["--detach", "--name", name, "--annotation", f"bufferzone.templates={templates}"]
    podman("run", *words, "--tmpfs", "/mem:size=300m", podman.image, "sleep", "1000")
    if "memory.stat" not in places(podman, name):
        pytest.skip("this host has no cgroup v1 memory controller")

    def held() -> int:
        rows = dict(row.split() for row in host(podman, name, "memory.stat").splitlines())
        return int(rows["shmem"]) >> 20  # MiB of the VM's memory: a memfd, or a file on a tmpfs

    podman("exec", name, "dd", "if=/dev/zero", "of=/mem/a", "bs=1M", "count=200")
    most = held()
    assert most > 200
    podman("exec", name, "rm", "/mem/a")
    await_true(lambda: held() < most - 150, "150 of 200 MiB back on the host")
