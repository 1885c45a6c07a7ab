"""What cannot be is refused by `create` in one line with JSON path or flag; the disk stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = str(Path(__file__).parents[2] / "bin" / "bufferzone")
MEMORY = "bufferzone.memory"
Config = dict[str, Any]


def good() -> Config:
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}]},
    }


def write(bundle: Path, value: Config | bytes) -> None:
    (bundle / "rootfs").mkdir(parents=True)
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    (bundle / "config.json").write_bytes(data)


def listing(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def create(base: Path, id: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROGRAM, "--root", str(base / "root"), "create", "-b", str(base / "bundle")]
    return subprocess.run([*command, *flags, id], capture_output=True, text=True, timeout=120, check=False)


def refused(base: Path, id: str = "c", *flags: str) -> str:
    """The one line of a refusal that changed nothing."""
    before = listing(base)
    done = create(base, id, *flags)
    assert done.returncode == 1
    assert done.stdout == ""
    assert listing(base) == before
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert len(done.stderr) < 600
    return done.stderr.removeprefix("bufferzone: ").rstrip("\n")


def changed(change: Callable[[Config], object]) -> Config:
    value = good()
    change(value)
    return value


def root(path: str) -> Config:
    return changed(lambda c: c.update(root={"path": path}))


def process(**keys: Any) -> Config:
    return changed(lambda c: c["process"].update(keys))


def mount(**keys: Any) -> Config:
    entry = {"destination": "/x", "type": "bind", "source": "/", "options": ["bind"], **keys}
    return changed(lambda c: c["mounts"].append(entry))


def linux(**keys: Any) -> Config:
    return changed(lambda c: c["linux"].update(keys))


def namespace(kind: str, path: str) -> Config:
    return linux(namespaces=[{"type": kind, "path": path}])


def hook(name: str, **keys: Any) -> Config:
    return changed(lambda c: c.update(hooks={name: [keys]}))


def annotated(name: str, text: str) -> Config:
    return changed(lambda c: c.update(annotations={name: text}))


CASES: dict[str, Config | bytes] = {
    "line 1 column 1: ": b"",
    "line 2 column 13: ": b'{"ociVersion": "1.0.2",\n "process": }',
    "expected an object, got array": b"[]",
    "not UTF-8 at byte 21": b'{"ociVersion": "1.0.2\xff"}',
    "nested too deeply": b'{"a":' * 100_000,
    "ociVersion: is missing": changed(lambda c: c.pop("ociVersion")),
    "ociVersion: unknown version 2.0.0": changed(lambda c: c.update(ociVersion="2.0.0")),
    "ociVersion: expected a version": changed(lambda c: c.update(ociVersion="new")),
    "ociVersion: expected a string, got number": changed(lambda c: c.update(ociVersion=1)),
    "root.path: is missing": changed(lambda c: c.pop("root")),
    "root.path: no such directory: /": root("gone"),
    "root.path: not a directory: /": root("config.json"),
    "process: is missing": changed(lambda c: c.pop("process")),
    "process.args: must not be empty": process(args=[]),
    "process.args[1]: expected a string": process(args=["a", 3]),
    "process.cwd: expected an absolute path": process(cwd="tmp"),
    "mounts: expected an array, got object": changed(lambda c: c.update(mounts={})),
    "mounts[1].destination: must not be empty": mount(destination=""),
    "mounts[1].options: expected an array, got string": mount(options="ro"),
    "mounts[1].source: no such file or directory: /nonexistent/x": mount(source="/nonexistent/x"),
    "mounts[1].source: missing: a bind mount needs a source": mount(source=""),
    "annotations.bufferzone.colour: unknown annotation": annotated("bufferzone.colour", "red"),
    "annotations.bufferzone.memory: memory must be 128 MiB to": annotated(MEMORY, "3MiB"),
    "annotations.bufferzone.memory: expected a size": annotated(MEMORY, "much"),
    "annotations.bufferzone.kernel: not allowed": annotated("bufferzone.kernel", "/x"),
    "linux.cgroupsPath: '/' is the root cgroup": linux(cgroupsPath="/"),
    "linux.cgroupsPath: '/../..' is the root cgroup": linux(cgroupsPath="/../.."),
    "linux.namespaces[0].path: no such file or directory: /gone": namespace("network", "/gone"),
    "linux.namespaces[0].path: a VM cannot join": namespace("mount", "/proc/1/ns/mnt"),
    "mounts[1].uidMappings: a VM cannot map the ids of a mount": mount(
        uidMappings=[{"containerID": 0, "hostID": 1000, "size": 1}]
    ),
    "mounts[1].options: a VM cannot map the ids of a mount": mount(options=["bind", "ridmap"]),
    "linux.sysctl.kernel/hostname: conflicts with hostname": linux(sysctl={"kernel/hostname": "x"}),
    "linux.sysctl.kernel.msgmax: the container has no ipc namespace": linux(
        sysctl={"kernel.msgmax": "1"}, namespaces=[{"type": "network"}, {"type": "uts"}]
    ),
    "linux.sysctl.fs/mqueue/msg_max: the container has no ipc namespace": linux(
        sysctl={"fs/mqueue/msg_max": "1"}, namespaces=[{"type": "network"}]
    ),
    "linux.sysctl.kernel.domainname: the container has no uts namespace": linux(
        sysctl={"kernel.domainname": "x"}, namespaces=[{"type": "network"}]
    ),
    "linux.timeOffsets: the container has no time namespace": linux(timeOffsets={"boottime": {"secs": 1}}),
    "linux.intelRdt: the guest has no resctrl": linux(intelRdt={"closID": "x"}),
    "linux.netDevices: a device of the host cannot": linux(netDevices={"eth0": {"name": "x"}}),
    "linux.memoryPolicy: the nodes are the host's": linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "0"}),
    "hooks.createRuntime[0].path: expected an absolute path": hook("createRuntime", path="true"),
    "hooks.poststop[0].timeout: must be greater than zero": hook("poststop", path="/x", timeout=0),
}


@pytest.mark.parametrize("start", CASES)
def test_a_config_that_cannot_be_is_refused_with_its_path(start: str, tmp_path: Path) -> None:
    write(tmp_path / "bundle", CASES[start])
    assert refused(tmp_path).startswith(f"config.json: {start}")


@pytest.mark.parametrize("id", ["a/b", "../x", "..", "a b", "\u00e4", "x" * 2000, "a\nb"], ids=ascii)
def test_an_id_that_cannot_name_a_directory_is_refused(id: str, tmp_path: Path) -> None:
    write(tmp_path / "bundle", good())
    assert refused(tmp_path, id).startswith("invalid container ID format: ")


def test_a_bundle_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"bundle: no such directory: {tmp_path}")
    (tmp_path / "bundle").mkdir()
    assert refused(tmp_path).startswith(f"{tmp_path}/bundle/config.json: no such file or directory")


def test_a_pid_file_without_a_directory_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "bundle", good())
    line = refused(tmp_path, "c", "--pid-file", f"{tmp_path}/gone/pid")
    assert line == f"--pid-file: no such directory: {tmp_path}/gone"


def test_a_relative_bundle_below_a_directory_that_is_gone_is_refused(tmp_path: Path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
    (tmp_path / "cwd").mkdir()
    words = [
        sys.executable,
        "-c",
        code,
        sys.executable,
        PROGRAM,
        "--root",
        str(tmp_path / "root"),
        "create",
        "c",
    ]
    done = subprocess.run(
        words, cwd=tmp_path / "cwd", capture_output=True, text=True, timeout=120, check=False
    )
    hint = "(hint: use an absolute path)"
    assert (done.returncode, done.stderr) == (1, f"bufferzone: the working directory was removed: . {hint}\n")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["gone", "file"])
def test_a_console_socket_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "bundle", process(terminal=True))
    (tmp_path / "file").touch()
    line = refused(tmp_path, "c", "--console-socket", f"{tmp_path}/{name}")
    assert line == f"--console-socket: not a unix socket: {tmp_path}/{name}"


def test_descriptors_cannot_be_passed(tmp_path: Path) -> None:
    write(tmp_path / "bundle", good())
    assert "--preserve-fds" in refused(tmp_path, "c", "--preserve-fds", "2")


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete"])
def test_an_unknown_container_does_not_exist(verb: str, tmp_path: Path) -> None:
    command = [sys.executable, PROGRAM, "--root", str(tmp_path / "root"), verb, "nobody"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, 'bufferzone: container "nobody" does not exist\n')
    assert listing(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "bundle", good())
    tmp_path.chmod(0o500)
    assert "permission denied" in refused(tmp_path).lower()
