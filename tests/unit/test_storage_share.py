"""The shared tree, in a child that has a mount namespace of its own."""

import os
import signal
import struct
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.linux import apart as mount_namespaces
from bufferzone.linux import mount
from bufferzone.model import Bind
from bufferzone.storage import share, virtiofs
from fakes import fuse_file

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")


def mounts_below(base: Path) -> list[str]:
    """The host's mounts there; others come and go with whatever else the machine does."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {base}" in line]


def apart(check: Callable[[share.Tree], None], base: Path) -> None:
    """Run `check` with a tree, in a forked child; what it prints on failure ends up in the report."""
    (base / "tree").mkdir()
    before = mounts_below(base)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            share.own_namespace()
            with share.Tree(str(base / "tree")) as tree:
                check(tree)
            assert os.listdir(base / "tree") == []
            code = 0
        except BaseException:
            (base / "failure").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, (base / "failure").read_text()
    assert mounts_below(base) == before


def test_directories_and_files_are_bound_and_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("f")
    (tmp_path / "link").symlink_to("data")

    def check(tree: share.Tree) -> None:
        tree.add(Bind(source=str(tmp_path / "link"), name="dir"))
        tree.add(Bind(source=str(tmp_path / "file"), name="file"))
        root = tmp_path / "tree"
        (root / "dir" / "new").write_text("n")
        assert (tmp_path / "data" / "new").read_text() == "n"
        assert (root / "file").read_text() == "f"
        tree.remove("dir")
        tree.remove("dir")
        assert os.listdir(root) == ["file"]
        tree.add(Bind(source=str(tmp_path / "data"), name="dir"))
        assert (root / "dir" / "new").read_text() == "n"

    apart(check, tmp_path)


def test_files_without_a_size_are_refused_and_what_is_mounted_below_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "data" / "proc").mkdir(parents=True)
    (tmp_path / "data" / "with \\ blank").mkdir()
    (tmp_path / "data" / "plain").write_text("plain")

    def check(tree: share.Tree) -> None:
        with pytest.raises(
            HostError, match="cannot share /proc/cpuinfo: files of proc have no size"
        ) as caught:
            tree.add(Bind(source="/proc/cpuinfo", name="cpus"))
        assert caught.value.code == "pseudo-files"
        for name in ("proc", "with \\ blank"):
            mount.mount("proc", str(tmp_path / "data" / name), "proc")
        tree.add(Bind(source=str(tmp_path / "data"), name="all"))
        tree.add(Bind(source=str(tmp_path / "data"), name="top", recursive=False))
        for name in ("proc", "with \\ blank"):
            assert os.listdir(tmp_path / "tree" / "all" / name) == []
            assert (tmp_path / "data" / name / "loadavg").read_text()
            mount.unmount(str(tmp_path / "data" / name))
        assert (tmp_path / "tree" / "all" / "plain").read_text() == "plain"
        assert sorted(os.listdir(tmp_path / "tree")) == ["all", "top"]
        tree.remove("all")
        tree.remove("top")

    apart(check, tmp_path)


@pytest.mark.parametrize(("size", "shared"), [(0, False), (3, False), (5, True), (4096, True)])
def test_a_fuse_file_that_goes_on_after_its_size_is_refused(tmp_path: Path, size: int, shared: bool) -> None:
    (tmp_path / "meminfo").touch()

    def check(tree: share.Tree) -> None:
        with fuse_file.mounted(tmp_path / "meminfo", b"12345", size):
            bind = Bind(source=str(tmp_path / "meminfo"), name="m")
            if shared:
                tree.add(bind)
                tree.remove("m")
            else:
                with pytest.raises(HostError, match="meminfo: it goes on after its size") as caught:
                    tree.add(bind)
                assert caught.value.code == "pseudo-files"
            assert os.listdir(tmp_path / "tree") == []

    apart(check, tmp_path)


def test_a_file_of_any_kernel_file_system_whose_size_is_a_lie_is_refused(tmp_path: Path) -> None:
    (tmp_path / "formats").mkdir()
    (tmp_path / "empty").touch()

    def check(tree: share.Tree) -> None:
        mount.mount("formats", str(tmp_path / "formats"), "binfmt_misc")
        with pytest.raises(HostError, match="formats/status: it goes on after its size"):
            tree.add(Bind(source=str(tmp_path / "formats" / "status"), name="status"))
        mount.unmount(str(tmp_path / "formats"))
        tree.add(Bind(source=str(tmp_path / "empty"), name="empty"))
        assert (tmp_path / "tree" / "empty").read_bytes() == b""
        tree.remove("empty")

    apart(check, tmp_path)


def test_the_kernels_own_below_a_bind_is_taken_off_and_named(tmp_path: Path) -> None:
    for name in ("sys", "dev", "tmp"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "sys" / "under").touch()

    def check(tree: share.Tree) -> None:
        for name, kind in (("sys", "sysfs"), ("dev", "devtmpfs"), ("tmp", "tmpfs")):
            mount.mount(kind, str(tmp_path / "data" / name), kind)
        mount.mount("cgroup", str(tmp_path / "data" / "sys" / "fs" / "cgroup"), "cgroup2")
        (tmp_path / "data" / "tmp" / "file").touch()
        assert tree.add(Bind(source=str(tmp_path / "data"), name="all")) == ["dev", "sys"]
        seen = {name: os.listdir(tmp_path / "tree" / "all" / name) for name in ("sys", "dev", "tmp")}
        assert seen == {"sys": ["under"], "dev": [], "tmp": ["file"]}
        tree.remove("all")
        mount.unmount(str(tmp_path / "data" / "sys" / "fs" / "cgroup"))
        for name in ("sys", "dev", "tmp"):
            mount.unmount(str(tmp_path / "data" / name))

    apart(check, tmp_path)


@pytest.mark.parametrize("below", [False, True])
def test_read_only_reaches_the_mounts_below_only_where_asked(tmp_path: Path, below: bool) -> None:
    (tmp_path / "data" / "inner").mkdir(parents=True)

    def check(tree: share.Tree) -> None:
        with share.Tree(str(tmp_path / "data" / "inner")):
            bind = Bind(source=str(tmp_path / "data"), name="ro", read_only=True, read_only_below=below)
            tree.add(bind)
            for place in ("ro/x", "ro/inner/x") if below else ("ro/x",):
                with pytest.raises(OSError, match="Read-only"):
                    (tmp_path / "tree" / place).write_text("x")
            (tmp_path / "data" / "inner" / "y").write_text("y")
            assert (tmp_path / "tree" / "ro" / "inner" / "y").read_text() == "y"
            if not below:
                (tmp_path / "tree" / "ro" / "inner" / "z").write_text("z")
            tree.remove("ro")

    apart(check, tmp_path)


def test_an_overlay_is_made_of_host_paths_and_nobody_else_sees_the_mount(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").write_text("lower")
    options = tuple(f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work"))

    def check(tree: share.Tree) -> None:
        before = Path("/proc/self/mountinfo").read_text().count(" overlay ")
        tree.add(Bind(source="overlay", name="o", type="overlay", options=options))
        assert (tmp_path / "tree" / "o" / "file").read_text() == "lower"
        (tmp_path / "tree" / "o" / "new").write_text("new")
        assert (tmp_path / "upper" / "new").read_text() == "new"
        assert Path("/proc/self/mountinfo").read_text().count(" overlay ") == before + 1  # in the tree alone
        tree.remove("o")

    apart(check, tmp_path)


def test_a_file_system_that_no_kernel_has_is_one_line(tmp_path: Path) -> None:
    def check(tree: share.Tree) -> None:
        with pytest.raises(HostError, match="unknown file system type, here and in the guest: nosuchfs"):
            tree.add(Bind(source="x", name="x", type="nosuchfs"))
        missing = ("lowerdir=/nowhere", "upperdir=/nowhere", "workdir=/nowhere")
        with pytest.raises(HostError, match=r"cannot mount overlay \(overlay\): No such file"):
            tree.add(Bind(source="overlay", name="x", type="overlay", options=missing))
        assert os.listdir(tmp_path / "tree") == []

    apart(check, tmp_path)


def test_device_nodes_in_a_bind_do_not_open(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mknod(tmp_path / "data" / "null", 0o20666, os.makedev(1, 3))

    def check(tree: share.Tree) -> None:
        tree.add(Bind(source=str(tmp_path / "data"), name="data"))
        with pytest.raises(PermissionError):
            (tmp_path / "tree" / "data" / "null").read_bytes()

    apart(check, tmp_path)


def test_a_missing_source_is_named_and_the_tree_stays_as_it_was(tmp_path: Path) -> None:
    def check(tree: share.Tree) -> None:
        with pytest.raises(HostError, match="cannot share /no/such: No such file or directory"):
            tree.add(Bind(source="/no/such", name="x"))
        tree.add(Bind(source="/etc", name="taken"))
        with pytest.raises(HostError, match="cannot share /usr: File exists"):
            tree.add(Bind(source="/usr", name="taken"))
        assert os.listdir(tmp_path / "tree") == ["taken"]

    apart(check, tmp_path)


def test_a_tree_that_moved_takes_its_binds_along_and_its_old_place_may_go(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    def check(tree: share.Tree) -> None:
        tree.add(Bind(source="/etc", name="first"))
        tree.move(str(tmp_path / "other"))
        tree.add(Bind(source="/usr", name="second"))
        assert sorted(os.listdir(tmp_path / "other")) == ["first", "second"]
        assert (tmp_path / "other" / "first" / "passwd").exists()
        os.rmdir(tmp_path / "tree")
        os.mkdir(tmp_path / "tree")
        tree.remove("first")
        assert os.listdir(tmp_path / "other") == ["second"]
        with pytest.raises(HostError, match="cannot move the shared tree to /no/such"):
            tree.move("/no/such")

    apart(check, tmp_path)


def test_a_source_is_looked_for_where_the_caller_is(tmp_path: Path) -> None:
    """As podman's overlay mounts are private: a shim that was there before does not see them."""
    (tmp_path / "data").mkdir()
    ours, theirs = os.pipe()

    def check(tree: share.Tree) -> None:
        pid = os.fork()
        if pid == 0:
            share.own_namespace()
            with share.Tree(str(tmp_path / "data")):
                (tmp_path / "data" / "theirs").touch()
                os.write(theirs, b"x")
                signal.pause()
        os.read(ours, 1)
        there = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        try:
            bind = Bind(source=str(tmp_path / "data"), name="seen")
            tree.add(bind, partial(mount_namespaces.in_mount_namespace, there))
            assert os.listdir(tmp_path / "tree" / "seen") == ["theirs"]
            assert os.listdir(tmp_path / "data") == [], "this process is where it was"
            missing = Bind(source="/no/such", name="x")
            with pytest.raises(HostError, match="cannot share /no/such"):
                tree.add(missing, partial(mount_namespaces.in_mount_namespace, there))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    try:
        apart(check, tmp_path)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "x\0", "n" * 256])
def test_a_name_is_one_component(tmp_path: Path, name: str) -> None:
    def check(tree: share.Tree) -> None:
        with pytest.raises(ValueError, match="not a name for a bind"):
            tree.add(Bind(source="/etc", name=name))

    apart(check, tmp_path)


def test_a_socket_pair_has_no_path_even_in_a_deep_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    listener, client = virtiofs.connected_pair(str(deep))
    with listener, client:
        accepted, _ = listener.accept()
        with accepted:
            accepted.send(b"x")
            assert client.recv(1) == b"x"
    assert os.listdir(deep) == []


@pytest.mark.parametrize(
    ("kind", "hard", "open_files"), [("c", 64, 64), ("rust", 610, 610), ("rust", 4096, 1024)]
)
def test_virtiofsd_may_open_what_is_asked_for_up_to_the_hard_limit(monkeypatch, kind, hard, open_files):
    monkeypatch.setattr(virtiofs.resource, "getrlimit", lambda which: (hard, hard))
    assert virtiofs.allowed_files(virtiofs.Program(kind=kind, path="/v"), 1024) == open_files


def test_a_hard_limit_that_the_rust_virtiofsd_refuses_is_named(monkeypatch):
    monkeypatch.setattr(virtiofs.resource, "getrlimit", lambda which: (64, 609))
    with pytest.raises(HostError, match="hard limit of open files is 609, and virtiofsd needs 610"):
        virtiofs.allowed_files(virtiofs.Program(kind="rust", path="/v"), 1024)


def acl(path: Path, kind: str) -> None:
    """Give it an ACL that user 1234 may read by; source: acl(5), linux/posix_acl_xattr.h."""
    none = 0xFFFFFFFF
    entries = ((1, 6, none), (2, 4, 1234), (4, 0, none), (16, 4, none), (32, 0, none))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, f"system.posix_acl_{kind}", value)


def test_a_bind_whose_root_has_an_acl_is_known(tmp_path: Path) -> None:
    for name in ("plain", "granting", "inherited"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    acl(tmp_path / "granting", "access")
    acl(tmp_path / "inherited", "default")
    acl(tmp_path / "file", "access")

    def check(tree: share.Tree) -> None:
        for name in ("plain", "granting", "inherited", "file"):
            tree.add(Bind(source=str(tmp_path / name), name=name))
        found = [name for name in tree.names() if tree.has_acl(name)]
        assert found == ["granting", "inherited", "file"]
        assert not tree.has_acl("gone")

    apart(check, tmp_path)
