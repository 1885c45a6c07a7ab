"""Limits of the host's cgroup: what is written where, taken back, refused. Directories stand for cgroups."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from bufferzone.errors import CallerError, GuestError, HostError
from bufferzone.linux import libseccomp
from bufferzone.sandbox import limits
from bufferzone.sandbox.container import Container
from bufferzone.sandbox.containers import Containers
from bufferzone.sandbox.copies import Copies
from bufferzone.vm import cgroups
from bufferzone.vm.group import Group

MIB = 1 << 20
EVERYTHING = {
    "memory": {"limit": 64 * MIB},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0"},
    "pids": {"limit": 10},
    "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
}
MOST = str((512 + 8 + limits.MEMORY_MIB) * MIB)
V1 = {
    "memory.limit_in_bytes": MOST,
    "cpu.shares": "512",
    "cpu.cfs_period_us": "100000",
    "cpu.cfs_quota_us": "60000",
    "pids.max": "336",
    "cpuset.cpus": "0-1",
    "cpuset.mems": "0",
    "blkio.bfq.weight": "100",
    "blkio.throttle.read_bps_device": "8:0 1000",
}
V2 = {
    "memory.max": MOST,
    "cpu.weight": "20",
    "cpu.max": "60000 100000",
    "pids.max": "336",
    "cpuset.cpus": "0-1",
    "cpuset.mems": "0",
    "io.bfq.weight": "100",
    "io.weight": "910",
    "io.max": "8:0 rbps=1000",
}


class Host:
    """One hierarchy whose cgroup `c` has these files."""

    def __init__(self, base: Path, monkeypatch, *names: str, ours: bool = True):
        self.place = base / "c"
        self.place.mkdir()
        for name in names:
            (self.place / name).write_text("before\n")
        self.lines: list[str] = []
        monkeypatch.setattr(cgroups, "places", lambda relative: [str(self.place)])
        monkeypatch.setattr(cgroups, "_made", {str(self.place)} if ours else set())

    def apply(self, resources):
        return limits.apply(Group("c"), resources, 512, self.lines.append)

    def found(self):
        # a write does not shorten a plain file, as it does one of the kernel's
        every = {p.name: p.read_text() for p in self.place.iterdir()}
        return {name: text for name, text in every.items() if not text.startswith("before")}


@pytest.mark.parametrize(("wanted", "marks"), [(V1, ()), (V2, ("cgroup.controllers",))])
def test_every_limit_is_written_where_the_hierarchy_has_it(tmp_path, monkeypatch, wanted, marks):
    host = Host(tmp_path, monkeypatch, *wanted, *marks)
    host.apply(EVERYTHING)
    found = host.found()
    assert found.keys() == wanted.keys()
    assert all(found[name].startswith(text) for name, text in wanted.items())
    assert host.lines == []


def test_what_was_not_asked_for_is_not_touched(tmp_path, monkeypatch):
    host = Host(tmp_path, monkeypatch, *V1)
    host.apply({"memory": {"swap": 5}, "cpu": {}, "pids": None, "blockIO": {}})
    assert host.found() == {}


def test_a_cgroup_that_somebody_else_made_is_not_limited(tmp_path, monkeypatch):
    host = Host(tmp_path, monkeypatch, *V1, ours=False)
    host.apply({"memory": {"limit": MIB}})
    assert host.found() == {}


def test_without_a_limit_the_old_one_is_lifted():
    lifted = {"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}
    v1 = {name: text for name, text, _ in limits.cgroup_v1(lifted, 512)}
    assert (v1["memory.limit_in_bytes"], v1["cpu.cfs_quota_us"], v1["pids.max"]) == ("-1", "-1", "max")
    v2 = {name: text for name, text, _ in limits.cgroup_v2(lifted, 512)}
    assert (v2["memory.max"], v2["cpu.max"], v2["pids.max"]) == ("max", "max 100000", "max")


def test_a_limit_that_the_guest_holds_too_is_one_line_when_it_cannot_be_set(tmp_path, monkeypatch):
    host = Host(tmp_path, monkeypatch, "cpu.shares")
    refuse(monkeypatch, "cpu.shares")
    host.apply(EVERYTHING | {"blockIO": {}, "cpu": {"shares": 5}})
    line = (
        "cgroup: cannot set cpu.shares to 5: invalid argument; the guest enforces the container's own limit"
    )
    assert host.lines == [line]


def refuse(monkeypatch, *names):
    true_write = cgroups.write_file

    def write(path, text):
        if Path(path).name in names:
            raise OSError(22, "Invalid argument")
        true_write(path, text)

    monkeypatch.setattr(cgroups, "write_file", write)


def test_one_that_only_the_host_holds_is_an_error_and_nothing_is_changed(tmp_path, monkeypatch):
    host = Host(tmp_path, monkeypatch, *V1)
    refuse(monkeypatch, "cpuset.mems")
    with pytest.raises(HostError, match=r"cannot set cpuset.mems to 0: invalid argument") as caught:
        host.apply(EVERYTHING)
    assert caught.value.message.startswith("linux.resources.cpu.mems: ")
    assert host.found() == {}


@pytest.mark.parametrize("name", ["io.bfq.weight", "io.weight"])
def test_a_block_io_weight_is_whichever_the_unified_hierarchy_has(tmp_path, monkeypatch, name):
    host = Host(tmp_path, monkeypatch, name, "cgroup.controllers")
    host.apply({"blockIO": {"weight": 1000}})
    assert host.found()[name].startswith({"io.bfq.weight": "1000", "io.weight": "10000"}[name])


@pytest.mark.parametrize(
    ("name", "marks"), [("blkio.bfq.weight_device", ()), ("io.bfq.weight", ("cgroup.controllers",))]
)
def test_a_weight_of_one_device_is_written_or_an_error(tmp_path, monkeypatch, name, marks):
    block = {"weightDevice": [{"major": 7, "minor": 1}, {"major": 7, "minor": 0, "weight": 444}]}
    host = Host(tmp_path, monkeypatch, name, "io.weight", *marks)
    host.apply({"blockIO": block})
    assert host.found() == {name: "7:0 444"}
    os.unlink(host.place / name)
    with pytest.raises(HostError, match="the host's controller is not available"):
        host.apply({"blockIO": block})
    assert host.found() == {}


def test_one_without_a_controller_or_a_cgroup_is_an_error(tmp_path, monkeypatch):
    Host(tmp_path, monkeypatch, "cpu.shares")
    with pytest.raises(HostError, match="the host's controller is not available"):
        limits.apply(Group("c"), {"cpu": {"cpus": "0"}}, 512, print)
    with pytest.raises(HostError, match="no cgroup of its own") as caught:
        limits.apply(Group(""), {"cpu": {"cpus": "0"}}, 512, print)
    assert "linux.cgroupsPath" in caught.value.hint


def test_a_cgroup_that_was_taken_away_is_named_whether_the_guest_holds_the_limit_or_not(monkeypatch):
    monkeypatch.setattr(cgroups, "places", lambda relative: [])
    lines = []
    limits.apply(Group("a/c"), {"memory": {"limit": MIB}}, 512, lines.append)
    gone = "the host has no cgroup a/c (any more)"
    assert lines == [f"{gone}; the guest enforces the container's own limits"]
    with pytest.raises(HostError) as caught:
        limits.apply(Group("a/c"), {"cpu": {"cpus": "0"}}, 512, lines.append)
    assert caught.value.line() == f"linux.resources.cpu.cpus: cgroup: cannot set cpuset.cpus to 0: {gone}"


def test_what_apply_returns_takes_it_back(tmp_path, monkeypatch):
    host = Host(tmp_path, monkeypatch, *V1)
    host.apply(EVERYTHING)()
    assert host.found() == {}


def test_a_pods_cgroup_is_left_to_its_maker():
    spec = {"linux": {"resources": EVERYTHING}, "annotations": {"io.kubernetes.cri.sandbox-id": "p"}}
    assert limits.resources_of(spec, spec["annotations"]) == {}
    assert limits.resources_of(spec, {}) == EVERYTHING  # an image says so
    assert limits.resources_of({"linux": {"resources": EVERYTHING}}, {}) == EVERYTHING


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": {"limit": 440 * MIB}},
        {"memory": {"limit": -1}},
        {"cpu": {"quota": 100000}},
        {"cpu": {"quota": -1}},
        {"cpu": {"shares": 9}},
        {"cpu": {"quota": 290000}},  # less than there was, though more than the VM can use
    ],
)
def test_an_update_within_the_vm_is_accepted(changes):
    old = {"cpu": {"quota": 300000, "period": 100000}}
    limits.check_update(old, changes, vcpus=1, memory_mib=512)
    assert limits.merge(old, changes) != old


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"memory": {"limit": 441 * MIB}}, "the VM has 512 MiB, of which a container can have 440"),
        ({"cpu": {"quota": 250000}}, "cannot set the CPU limit to 2.5: the VM has 2"),
        ({"cpu": {"quota": 250000, "period": 50000}}, "cannot set the CPU limit to 5: the VM has 2"),
    ],
)
def test_an_update_beyond_the_vm_is_refused_with_a_way_out(changes, text):
    with pytest.raises(CallerError, match=text) as caught:
        limits.check_update({"cpu": {"quota": 200000}}, changes, vcpus=2, memory_mib=512)
    assert (caught.value.code, "annotation bufferzone." in caught.value.hint) == ("vm-size", True)


def test_controllers_are_handed_down_to_a_new_cgroup_of_the_unified_hierarchy(tmp_path):
    for path, controllers in ((tmp_path, "cpu memory pids hugetlb"), (tmp_path / "a", "memory")):
        path.mkdir(exist_ok=True)
        (path / "cgroup.controllers").write_text(controllers)
        (path / "cgroup.subtree_control").write_text("cpu" + " " * 20)
    written = []
    true_write = cgroups.write_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroups, "write_file", lambda path, text: written.append((path, text)))
        cgroups._make(str(tmp_path), str(tmp_path / "a" / "b"))
    assert true_write is cgroups.write_file
    top, below = (str(path / "cgroup.subtree_control") for path in (tmp_path, tmp_path / "a"))
    assert written == [(top, "+memory"), (top, "+pids"), (below, "+memory")]
    assert cgroups.is_ours(str(tmp_path / "a" / "b"))
    assert not cgroups.is_ours(str(tmp_path / "a"))


class Sandbox:
    """What an update needs; `refusal` is what the guest says."""

    def __init__(self, refusal=None):
        self.cgroup, self.vcpus, self.memory_mib, self.log = Group("c"), 1, 512, print
        self.agent, self.refusal, self.asked = self, refusal, []

    def call(self, method, request, reply):
        self.asked.append((method, json.loads(request.resources)))
        if self.refusal:
            raise self.refusal


@pytest.fixture
def container():
    return Container(
        "c",
        "/b",
        1,
        spec={"linux": {"resources": {"pids": {"limit": 5}}}},
        pod={},
        seccomp=libseccomp.Filter(program=b"", flags=0),
        hooks={},
        copies=Copies(),
        joined=False,
        adopted=False,
        namespace=-1,
        cgroup=Group(""),
        undo=ExitStack(),
    )


def test_an_update_reaches_guest_and_host_and_is_remembered(tmp_path, monkeypatch, container):
    host, sandbox = Host(tmp_path, monkeypatch, *V1), Sandbox()
    Containers(sandbox, None).update(container, {"cpu": {"shares": 7, "cpus": "0"}})
    assert sandbox.asked == [("Update", {"cpu": {"shares": 7}})]
    assert sorted(host.found()) == ["cpu.shares", "cpuset.cpus", "pids.max"]
    assert container.spec["linux"]["resources"] == {
        "pids": {"limit": 5},
        "cpu": {"shares": 7, "cpus": "0"},
    }


def test_a_limit_of_zero_in_an_update_says_as_it_is(tmp_path, monkeypatch, container):
    host, sandbox = Host(tmp_path, monkeypatch, *V1), Sandbox()
    zeros = {"cpu": {"shares": 7, "quota": 0, "period": 0}, "pids": {"limit": 0}, "memory": {"limit": 0}}
    Containers(sandbox, None).update(container, {**zeros, "blockIO": {"weight": 0}})
    assert sandbox.asked == [("Update", {"cpu": {"shares": 7}, "pids": {}, "memory": {}})]
    assert host.found()["pids.max"].startswith(str(256 + 8 * 5))
    assert "cpu.cfs_quota_us" not in host.found()
    kept = {"pids": {"limit": 5}, "cpu": {"shares": 7}, "memory": {}, "blockIO": {}}
    assert container.spec["linux"]["resources"] == kept


def test_an_update_that_the_guest_refuses_leaves_the_host_as_it_was(tmp_path, monkeypatch, container):
    host = Host(tmp_path, monkeypatch, *V1)
    with pytest.raises(GuestError):
        Containers(Sandbox(GuestError("no")), None).update(container, {"cpu": {"shares": 7}})
    assert host.found() == {}
    assert container.spec["linux"]["resources"] == {"pids": {"limit": 5}}


def test_an_update_beyond_the_vm_is_not_even_asked(tmp_path, monkeypatch, container):
    host, sandbox = Host(tmp_path, monkeypatch, *V1), Sandbox()
    with pytest.raises(CallerError):
        Containers(sandbox, None).update(container, {"memory": {"limit": 1 << 40}, "cpu": {"shares": 7}})
    assert (sandbox.asked, host.found()) == ([], {})


@pytest.mark.parametrize(
    ("linux", "path"),
    [
        ({}, ""),
        ({"resources": {"devices": [{"allow": False}]}}, ""),
        ({"resources": {"cpu": {"cpus": "0"}}}, "c"),
        ({"resources": {"memory": {"limit": 1 << 27}}}, "c"),
        ({"resources": {"pids": {"limit": 5}}, "cgroupsPath": "/x/y"}, "x/y"),
        ({"cgroupsPath": "machine.slice:libpod:1"}, "machine.slice/libpod-1.scope"),
    ],
)
def test_limits_without_a_cgroup_get_one_with_the_containers_name(linux, path, monkeypatch):
    monkeypatch.setattr("bufferzone.systemd.is_there", lambda: False)
    assert limits.cgroup_of({"linux": linux}, "c").path == path
