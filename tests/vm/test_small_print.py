"""The small print of the contract in a real VM: what `tests/flow/test_small_print.py` cannot see."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm import private
from vm.leftovers import Watch
from vm.verbs import Runtime, bundle, config

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, cgroups"),
]

MARK = f"bzprint-{os.getpid()}"
PROPAGATIONS = ("shared", "slave", "private", "unbindable", "rshared", "rslave")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path_factory.mktemp("print") / "root")
    watch = Watch(runtime.root, mark=MARK)
    yield runtime
    runtime.close()
    watch.assert_nothing_left(60)


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with `file`, and below it a tmpfs at `inner` with `deep`."""
    directory = tmp_path_factory.mktemp("nested")
    (directory / "file").write_text("top")
    (directory / "inner").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inner", directory / "inner"], check=True)
    (directory / "inner" / "deep").write_text("below")
    yield directory
    subprocess.run(["umount", directory / "inner"], check=True)


@pytest.fixture(scope="module")
def box(runtime: Runtime, nested: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A container with a bind of each kind, a CPU set and no cgroupsPath; the first is at /etc."""
    value = config("exec sleep 1000")
    binds = {f"/{name}": ["rbind", name] for name in PROPAGATIONS}
    binds |= {"/etc": ["bind", "shared"], "/tree": ["rbind"], "/top": ["bind"], "/plain": []}
    for place, options in binds.items():
        mount = {"destination": place, "type": "bind", "source": str(nested), "options": options}
        value["mounts"].append(mount)
    value["linux"]["resources"] = {"cpu": {"cpus": "0", "mems": "0"}}
    name = f"{MARK}-box"
    runtime.run(name, bundle(tmp_path_factory.mktemp("box"), **value))
    return name


def cat(runtime: Runtime, box: str, path: str) -> str:
    return runtime.ok("exec", box, "cat", path).out


def test_a_start_has_returned_once_the_program_runs(runtime: Runtime, tmp_path: Path) -> None:
    name = f"{MARK}-start"
    runtime.run(name, bundle(tmp_path, **config("exec sleep 1000")))
    assert "sleep 1000" in cat(runtime, name, "/proc/1/cmdline").replace("\0", " ")
    runtime.ok("delete", "--force", name)


def test_binds_have_the_propagation_that_was_asked_for(runtime: Runtime, box: str) -> None:
    for name in PROPAGATIONS:
        assert cat(runtime, box, f"/{name}/inner/deep") == "below"
    rows = [line.split() for line in cat(runtime, box, "/proc/self/mountinfo").splitlines()]
    tags = {row[4]: " ".join(row[6 : row.index("-")]) for row in rows}
    for name in PROPAGATIONS:
        assert tags[f"/{name}"].startswith("shared:") == (name in ("shared", "rshared")), (name, tags)
        assert ("unbindable" in tags[f"/{name}"]) == (name == "unbindable")
    assert tags["/rshared/inner"].startswith("shared:")
    assert [tags[f"/{name}/inner"] for name in ("rslave", "shared", "slave", "private")] == [""] * 4
    assert tags["/etc"].startswith("shared:")
    assert tags["/tree"] == ""


def test_an_rbind_has_what_is_mounted_below_and_a_bind_has_not(runtime: Runtime, box: str) -> None:
    assert cat(runtime, box, "/tree/inner/deep") == cat(runtime, box, "/plain/inner/deep") == "below"
    assert cat(runtime, box, "/top/file") == cat(runtime, box, "/etc/file") == "top"
    assert runtime.ok("exec", box, "ls", "/top/inner").out == ""


def test_a_cpu_set_without_a_path_is_in_a_cgroup_of_the_containers_name(runtime: Runtime, box: str) -> None:
    found = [Path(f"/sys/fs/cgroup/cpuset/{box}"), Path(f"/sys/fs/cgroup/{box}")]
    there = [path for path in found if path.is_dir()]
    assert there, found
    cpus = {(path / "cpuset.cpus").read_text().strip() for path in there if (path / "cpuset.cpus").exists()}
    assert cpus == {"0"}
    pids = {int(pid) for path in there for pid in (path / "cgroup.procs").read_text().split()}
    qemu = runtime.helper_pids(box)["qemu"]
    assert qemu in pids
    allowed = Path(f"/proc/{qemu}/status").read_text().split("Cpus_allowed_list:")[1].split()[0]
    assert allowed == "0"


def test_a_walk_through_more_files_than_virtiofsd_may_have_open_ends_well(tmp_path: Path) -> None:
    """The guest's kernel remembers each of them; at the bound not even `cat` could be run."""
    (tmp_path / "config.toml").write_text("open_files = 4096\n")
    for number in range(6000):
        (tmp_path / "volume" / str(number // 100)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "volume" / str(number // 100) / str(number)).write_text(str(number))
    value = config("ls -lR /v | grep -c -- -rw; cat /v/59/5999; exec sleep 1000")
    value["mounts"].append({"destination": "/v", "type": "bind", "source": str(tmp_path / "volume")})
    runtime = Runtime(tmp_path / "root", private.words(settings=str(tmp_path / "config.toml")))
    try:
        container = runtime.run("many", bundle(tmp_path / "bundle", **value))
        container.expect("6000\n5999")
        virtiofsd = runtime.helper_pids("many")["virtiofsd"]
        assert len(os.listdir(f"/proc/{virtiofsd}/fd")) < 4096
        assert runtime.ok("exec", "many", "cat", "/v/0/1").out == "1"
        told = (runtime.root / "many" / "shim.log").read_text()
        assert "of 4096 that it may: it forgets those that nobody uses" in told
        runtime.ok("delete", "--force", "many")
        assert container.errors() == ""
    finally:
        runtime.close()
