"""The shared tree, in a child that has a mount namespace of its own."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.model import Bind
from bufferzone.storage import share, virtiofs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")


def apart(check: Callable[[share.Tree], None], base: Path) -> None:
    """Run `check` with a tree, in a forked child; what it prints on failure ends up in the report."""
    (base / "tree").mkdir()
    before = Path("/proc/self/mountinfo").read_text()
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
    assert Path("/proc/self/mountinfo").read_text() == before


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


def test_read_only_reaches_the_mounts_below_and_leaves_the_source_writable(tmp_path: Path) -> None:
    (tmp_path / "data" / "inner").mkdir(parents=True)

    def check(tree: share.Tree) -> None:
        with share.Tree(str(tmp_path / "data" / "inner")):
            tree.add(Bind(source=str(tmp_path / "data"), name="ro", read_only=True))
            for place in ("ro/x", "ro/inner/x"):
                with pytest.raises(OSError, match="Read-only"):
                    (tmp_path / "tree" / place).write_text("x")
            (tmp_path / "data" / "inner" / "y").write_text("y")
            assert (tmp_path / "tree" / "ro" / "inner" / "y").read_text() == "y"
            tree.remove("ro")

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
