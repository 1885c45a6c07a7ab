"""What containerd started is seen and joined by bz, whose shim it is not."""

from __future__ import annotations

import json
import subprocess

import pytest

from bufferzone.workload.default_spec import default_spec
from flow.cli import BZ, DEADLINE_S, SETTINGS, make_rootfs, needs_host
from vm import private
from vm.containerd import RUNTIME, Containerd, needs_containerd

pytestmark = [
    needs_host,
    needs_containerd,
]


@pytest.fixture(scope="module")
def containerd(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ctrd")
    (directory / "settings.toml").write_text(f"{SETTINGS}\n")
    daemon = Containerd(directory, private.words(settings=str(directory / "settings.toml")))
    daemon.start()
    try:
        make_rootfs(directory / "rootfs")
        yield daemon
    finally:
        daemon.stop()


def spec(rootfs):
    """ctr's own asks for more of a cgroup than every host has."""
    found = default_spec(rootless=False)
    found["process"]["args"], found["process"]["terminal"] = ["sleep", "1000"], False
    found["root"] = {"path": rootfs}
    return found


def begin(containerd, id, **annotations):
    config = containerd.directory / f"{id}.json"
    found = spec(str(containerd.directory / "rootfs"))
    config.write_text(json.dumps({**found, "annotations": annotations}))
    containerd.ctr("run", "-d", "--runtime", RUNTIME, "--config", str(config), id)


def end(containerd, id):
    containerd.ctr("task", "rm", "-f", id, check=False)
    containerd.ctr("containers", "rm", id, check=False)


@pytest.fixture
def seen(containerd):
    """A container that runs; its id."""
    begin(containerd, "seen-by-bz")
    yield "seen-by-bz"
    end(containerd, "seen-by-bz")


def bz(*words, check=0):
    """`bz WORDS`; its output."""
    done = subprocess.run(
        [BZ, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == check, (words, done.stdout, done.stderr)
    return done.stdout if not check else done.stderr


def listed():
    return {row["id"]: row for row in json.loads(bz("ps", "--json"))}


def test_it_is_listed_joined_and_measured(containerd, seen, tmp_path):
    row = listed()[seen]
    assert (row["status"], row["namespace"]) == ("running", "bz-test")
    assert bz("exec", "-e", "X=1", seen, "sh", "-c", "echo $X").split() == ["1"]
    bz("exec", seen, "sh", "-c", "exit 9", check=9)
    (tmp_path / "f").write_text("copied")
    bz("cp", str(tmp_path / "f"), f"{seen}:/tmp")
    assert bz("exec", seen, "cat", "/tmp/f") == "copied"
    assert "sleep 1000" in bz("top", seen)
    assert bz("stats", seen).splitlines()[1].startswith(seen)
    assert "containerd" in bz("rm", "-f", seen, check=1)


def test_its_end_is_containerds_to_know(containerd, seen):
    waiting = subprocess.Popen([BZ, "wait", seen], stdout=subprocess.PIPE, text=True)
    bz("stop", "-t", "0", seen)
    assert waiting.communicate(timeout=DEADLINE_S)[0] == "137\n"
    assert "STOPPED" in containerd.ctr("task", "ls").stdout.decode()
    containerd.ctr("task", "rm", seen)
    assert seen not in listed()


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
def test_those_that_share_a_vm_are_reached_each_until_its_own_end(containerd, first, second):
    for id in ("a", "b"):
        begin(containerd, id, **{"io.containerd.runc.v2.group": f"group-{first}"})
    for id in ("a", "b"):
        assert bz("exec", id, "sh", "-c", "echo $0", id).split() == [id]
    end(containerd, first)
    assert bz("exec", second, "echo", "still").split() == ["still"]
    assert (first in listed(), listed()[second]["status"]) == (False, "running")
    end(containerd, second)
    assert listed().keys() & {"a", "b"} == set()
