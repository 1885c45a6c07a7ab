"""Containers of one VM: who names the network namespace of another runs beside it; either may go first."""

from __future__ import annotations

import subprocess

import pytest

from bufferzone import state
from flow.cli import Cli, needs_host

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


@pytest.fixture
def netns():
    """The path of a network namespace that a process of ours holds."""
    command = ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"ready\n"
        yield f"/proc/{holder.pid}/ns/net"
        holder.kill()


def bundle(bz, netns, name, **changes):
    kinds = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    linux = {"namespaces": [*kinds, {"type": "network", "path": netns}]}
    return bz.bundle("pause", name=name, linux=linux, **changes)


@pytest.fixture
def pair(bz, netns):
    """Two running containers, the second in the VM of the first."""
    for id in ("one", "two"):
        bz.create(id, bundle(bz, netns, id))
        bz("start", id)
    return bz


def test_the_second_container_is_served_by_the_shim_of_the_first(pair):
    owners = {state.owner_pid(str(pair.root / id)) for id in ("one", "two")}
    assert len(owners) == 1
    for id in ("one", "two"):
        assert pair("exec", id, "echo", id).stdout == f"{id}\n"


@pytest.mark.parametrize(("first", "last"), [("one", "two"), ("two", "one")])
def test_either_may_go_first_and_the_vm_goes_with_the_last(pair, first, last):
    pair("delete", "--force", first)
    assert pair.state(last)["status"] == "running"
    assert pair("exec", last, "echo", "on").stdout == "on\n"
    pair("delete", "--force", last)
    assert pair.left() == []


def test_every_namespace_of_the_other_can_be_named_and_each_is_its_own(bz, netns):
    bz.create("one", bundle(bz, netns, "one"))
    pid = bz.state("one")["pid"]
    files = {"pid": "pid_for_children", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup"}
    given = [{"type": kind, "path": f"/proc/{pid}/ns/{file}"} for kind, file in files.items()]
    names = [*given, {"type": "network", "path": netns}, {"type": "mount"}]
    bz.create("two", bz.bundle("pause", name="two", linux={"namespaces": names}))
    kinds = [f"/proc/self/ns/{kind}" for kind in ("pid", "ipc", "uts", "cgroup", "mnt")]
    one, two = (
        [bz("exec", id, "busybox", "readlink", kind).stdout for kind in kinds] for id in ("one", "two")
    )
    assert [mine == theirs for mine, theirs in zip(one, two, strict=True)] == [True, True, True, True, False]


def test_the_namespace_of_a_container_of_another_vm_is_refused_in_one_line(bz, netns):
    bz.create("one", bundle(bz, netns, "one"))
    path = f"/proc/{bz.state('one')['pid']}/ns/uts"
    names = [{"type": "uts", "path": path}, {"type": "mount"}, {"type": "network"}]
    said = bz.create("two", bz.bundle("pause", name="two", linux={"namespaces": names}), check=1)
    assert f"linux.namespaces[0].path: a VM cannot join the uts namespace {path!r}" in said
    assert "share the network too" in said
    assert [name for name in bz.left() if not name.startswith("@")] == ["one"]


def test_a_vm_with_two_containers_is_not_saved(pair):
    refused = pair("checkpoint", "--image-path", str(pair.base / "saved"), "one", check=1).stderr
    assert "an exec or another container is in its VM" in refused


def test_who_asks_for_more_than_the_vm_has_does_not_join(bz, netns):
    bz.create("one", bundle(bz, netns, "one"))
    said = bz.create("two", bundle(bz, netns, "two", annotations={"bufferzone.memory": "1GiB"}), check=1)
    assert "its memory_mib is 512, wanted is 1024" in said
    assert bz.state("one")["status"] == "created"
    assert [name for name in bz.left() if not name.startswith("@")] == ["one"]
