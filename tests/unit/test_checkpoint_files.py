"""A checkpoint's directory: whatever is killed, it holds the older one or the newer, whole, and what is not
ours is left alone.
"""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bufferzone import record
from bufferzone.config import Settings
from bufferzone.errors import HostError
from bufferzone.model import ImageRef
from bufferzone.snapshot import checkpoint_dir, checkpoint_writer, compatible, manifest
from bufferzone.snapshot.checkpoint_writer import Draft
from bufferzone.vm.shape import VmShape

IMAGE = ImageRef(digest="d", directory="/d", kernel="/k", initrd="/i", arguments=())
MACHINE = VmShape(
    vmm="qemu",
    image=IMAGE,
    kernel="/k",
    initrd="/i",
    kernel_arguments=(),
    accelerator="tcg",
    vcpus=1,
    memory_mib=1,
)
#: what a checkpoint is sealed with has a file of its own: test_checkpoint_seal.py
KEY, TAKES_ALL = b"k" * 32, Settings(foreign_checkpoints=True)
FACTS: dict[str, Any] = {"container": "c", "terminal": False, "spec": {}, "created": 1}


@pytest.fixture(autouse=True)
def no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpoint_writer, checkpoint_dir):
        monkeypatch.setattr(module, "saved_key", lambda shape: "key")


def write(directory: Path, text: str) -> Draft:
    """A draft with `text` in its files, published."""
    new = Draft(str(directory))
    for kind, fd in new.fds.items():
        os.write(fd, f"{text} {kind}".encode())
    new.publish(MACHINE, FACTS, {}, KEY)
    return new


def read(directory: Path) -> str:
    """The text of the checkpoint there, which has to be whole."""
    found = checkpoint_dir.open_checkpoint(str(directory), TAKES_ALL)
    found.check_memory(found.memory_fd)
    fds = (found.memory_fd, found.state_fd, found.disk_fd)
    texts = {os.pread(fd, 100, 0).decode().split()[0] for fd in fds}
    found.close()
    assert len(texts) == 1
    return texts.pop()


def test_a_newer_one_replaces_the_older_and_leaves_no_files_behind(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with write(tmp_path, text):
            pass
        assert read(tmp_path) == text
        assert len(os.listdir(tmp_path)) == 5


def killed_at(directory: Path, step: int) -> bool:
    """Write in a process that ends at its `step`th system call; whether it was done before."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    left = [step]

    def dying(real: Any) -> Any:
        def wrapper(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return real(*arguments, **more)

        return wrapper

    try:
        for name in ("open", "fsync", "rename", "unlink", "fstat", "stat", "listdir"):
            setattr(os, name, dying(getattr(os, name)))
        write(directory, "new")
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_any_step_the_older_or_the_newer_is_there(tmp_path: Path) -> None:
    seen = []
    finished = False
    while not finished:
        directory = tmp_path / str(len(seen))
        with write(directory, "old"):
            pass
        finished = killed_at(directory, len(seen))
        seen.append(read(directory))
        with write(directory, "third"):  # and nothing stands in the way of the next
            assert len(os.listdir(directory)) == 5
        assert len(seen) < 100
    assert seen == sorted(seen, reverse=True)  # old, old, ..., new, new
    assert set(seen) == {"old", "new"}


def test_one_that_was_never_finished_is_none_and_leaves_nothing(tmp_path: Path) -> None:
    with Draft(str(tmp_path)):
        with pytest.raises(HostError, match="no checkpoint in"):
            checkpoint_dir.open_checkpoint(str(tmp_path), TAKES_ALL)
        with pytest.raises(OSError, match="another checkpoint is being written there") as caught:
            Draft(str(tmp_path))
        assert caught.value.errno == errno.EBUSY
    assert os.listdir(tmp_path) == []


def test_files_of_others_stay(tmp_path: Path) -> None:
    names = {"memory", "state", "disk", "memory-0123456789abcdef", "bufferzone-memory-x", "notes"}
    for name in names:
        (tmp_path / name).write_text("mine")
    with Draft(str(tmp_path)):
        pass
    for text in ("old", "new"):
        with write(tmp_path, text):
            pass
    assert {name for name in names if (tmp_path / name).read_text() == "mine"} == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (checkpoint_dir.MANIFEST, "not JSON"),
        (checkpoint_dir.MANIFEST, '{"name": "my app"}'),
        (checkpoint_dir.MANIFEST, "[]"),
        (checkpoint_dir.INVENTORY, "CRIU's"),
    ],
)
def test_where_others_have_our_names_nothing_is_written(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(OSError, match=name):
        Draft(str(tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]


def test_names_in_a_manifest_lead_nowhere_else(tmp_path: Path) -> None:
    with write(tmp_path / "image", "old"):
        pass
    manifest = tmp_path / "image" / checkpoint_dir.MANIFEST
    value = json.loads(manifest.read_text())
    value["files"][checkpoint_dir.DISK][0] = "../secret"
    manifest.write_text(json.dumps(value))
    with pytest.raises(HostError, match="not a name of ours"):
        checkpoint_dir.open_checkpoint(str(tmp_path / "image"), TAKES_ALL)


def put(value: Any, at: str, item: object) -> None:
    """Set the field `at` (keys and indexes with dots between) of `value`."""
    *above, last = [int(key) if key.isdigit() else key for key in at.split(".")]
    for key in above:
        value = value[key]
    value[last] = item


def test_the_manifest_table_knows_every_field_that_is_written(tmp_path: Path) -> None:
    with write(tmp_path, "old"):
        pass
    value = json.loads((tmp_path / checkpoint_dir.MANIFEST).read_text())
    assert set(value) == set(manifest.FIELDS)
    assert set(value["shape"]) == set(manifest.SHAPE)
    assert set(value["shape"]["image"]) == set(manifest.IMAGE)
    assert [field.name for field in record.fields(VmShape)] == list(manifest.SHAPE)


@pytest.mark.parametrize(
    ("at", "item", "reason"),
    [
        ("shape.memory_mib", "9" * 200, "shape.memory_mib: expected a whole number, got a string"),
        ("shape.memory_mib", 1 << 40, "shape.memory_mib: must be 1 to 1048576"),
        ("shape.memory_mib", True, "shape.memory_mib: expected a whole number, got true or false"),
        ("shape.vcpus", 0, "shape.vcpus: must be 1 to 64"),
        ("shape.vcpus", 1.5, "shape.vcpus: expected a whole number, got something else"),
        ("shape.kernel_arguments", [1], "shape.kernel_arguments: expected a list of strings"),
        ("shape.kernel_arguments", ["x" * 4096], "at most 2048 printable characters"),
        ("shape.kernel", "etc/shadow", "shape.kernel: expected an absolute path"),
        ("shape.accelerator", ["tcg"], "shape.accelerator: must be one of kvm, tcg"),
        ("shape.nic", "no", "shape.nic: expected true or false, got a string"),
        ("shape.image", [], "shape.image: expected an object, got a list"),
        ("shape.image.arguments", "x", "shape.image.arguments: expected a list of strings"),
        ("shape.image.digest", "a\n", "shape.image.digest: expected at most 128 printable characters"),
        ("shape.more", 1, "shape.'more': unknown"),
        ("shape", None, "shape: expected an object, got something else"),
        ("container", "../x", "container: not the id of a container"),
        ("container", 7, "container: expected a string, got something else"),
        ("terminal", 1, "terminal: expected true or false, got something else"),
        ("created", -1, "created: must be 0 to"),
        ("spec", {"process.args": 3}, "spec: expected a hash in hexadecimal"),
        ("spec", ["process.args"], "spec: expected an object of at most 1000 hashes"),
        ("key", [], "key: expected a string, got a list"),
        ("version", "x" * 5000, "version: expected at most 64 printable characters"),
        ("format", "2", "format: expected a whole number, got a string"),
        ("files.disk", "x", "files.disk: expected a name, a size and a hash"),
        ("files.memory.1", 2 << 20, "files.memory: must be at most 1048576 bytes"),
        ("files.state.1", "12", "files.state: expected a whole number, got a string"),
        ("files.state.2", "z" * 64, "files.state: expected a hash in hexadecimal"),
        ("files.more", [], "files.'more': unknown"),
    ],
)
def test_a_stranger_field_is_one_line_before_anything_is_done_with_it(
    tmp_path: Path, at: str, item: object, reason: str
) -> None:
    with write(tmp_path, "old"):
        pass
    path = tmp_path / checkpoint_dir.MANIFEST
    value = json.loads(path.read_text())
    put(value, at, item)
    path.write_text(json.dumps(value))
    with pytest.raises(HostError, match=re.escape(reason)) as caught:
        checkpoint_dir.open_checkpoint(str(tmp_path), TAKES_ALL)
    assert caught.value.code == "checkpoint-damaged"
    assert len(caught.value.line()) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("field", sorted(manifest.FIELDS))
def test_a_manifest_lacks_nothing(tmp_path: Path, field: str) -> None:
    with write(tmp_path, "old"):
        pass
    path = tmp_path / checkpoint_dir.MANIFEST
    value = json.loads(path.read_text())
    del value[field]
    path.write_text(json.dumps(value))
    with pytest.raises(HostError, match=f"{field}: (is missing|expected an object)"):
        checkpoint_dir.open_checkpoint(str(tmp_path), TAKES_ALL)


def test_a_manifest_of_brackets_alone_is_one_line(tmp_path: Path) -> None:
    with write(tmp_path, "old"):
        pass
    (tmp_path / checkpoint_dir.MANIFEST).write_text("[" * 200_000)
    with pytest.raises(HostError, match="nested too deeply"):
        checkpoint_dir.open_checkpoint(str(tmp_path), TAKES_ALL)


SPEC: dict[str, Any] = {
    "hostname": "one",
    "process": {"args": ["sh"], "env": ["A=1", "HOSTNAME=one"], "user": {"uid": 0}},
    "root": {"path": "/a"},
    "mounts": [{"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["bind", "ro"]}],
    "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}], "cgroupsPath": "/one"},
}


@pytest.mark.parametrize(
    ("at", "value", "where"),
    [
        ("process.args", ["sh", "-c"], "process.args"),
        ("process.env", ["A=2", "HOSTNAME=one"], "process.env"),
        ("process.env", ["A=1", "HOSTNAME=two"], ""),
        ("process.noNewPrivileges", True, "process.noNewPrivileges"),
        ("process.apparmorProfile", "x", ""),
        ("root.path", "/b", ""),
        ("root.readonly", True, "root.readonly"),
        ("root.readonly", False, ""),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW"}, "linux.seccomp"),
        ("linux.cgroupsPath", "/two", ""),
        ("linux.resources", {"pids": {"limit": 5}}, ""),
        ("linux.namespaces", [{"type": "pid"}], ""),
        ("linux.namespaces", [{"type": "network"}], "linux.namespaces"),
        ("annotations", {"bufferzone.rootfs_image": "/i"}, "annotations.bufferzone.rootfs_image"),
        ("annotations", {"other": "x"}, ""),
        ("hostname", "two", ""),
        ("mounts", [{**SPEC["mounts"][0], "source": "/y"}], ""),
        ("mounts", [{**SPEC["mounts"][0], "options": ["bind"]}], "mounts"),
        ("mounts", [], "mounts"),
        ("mounts", [{**SPEC["mounts"][0], "options": ["bind", "ro", "rprivate"]}], ""),
    ],
)
def test_a_bundle_may_differ_where_the_host_makes_it_anew_and_nowhere_else(
    at: str, value: object, where: str
) -> None:
    changed = json.loads(json.dumps(SPEC))
    *above, last = at.split(".")
    within = changed
    for key in above:
        within = within[key]
    within[last] = value
    assert compatible.differences(compatible.parts(SPEC), changed) == ([where] if where else [])


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [("/proc", "/etc/hosts", True), ("/dev/shm", "/dev", False), ("/dev", "/dev/", False)],
)
def test_the_order_of_mounts_counts_where_one_hides_another(first: str, second: str, same: bool) -> None:
    mounts = [{"destination": place, "type": "tmpfs", "options": [place]} for place in (first, second)]
    one, other = {**SPEC, "mounts": mounts}, {**SPEC, "mounts": mounts[::-1]}
    assert (compatible.differences(compatible.parts(one), other) == []) == same
