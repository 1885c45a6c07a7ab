"""A root file system that is an overlay, through the real shim and agent: packed once, then used again."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest

from bufferzone import state
from flow.cli import DEADLINE_S, Cli, make_rootfs, needs_host, read
from vm.verbs import await_true

pytestmark = [
    needs_host,
    pytest.mark.skipif(not os.path.exists("/usr/bin/mkfs.erofs"), reason="not installed: mkfs.erofs"),
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices"),
]

BLOCK = {"bufferzone.rootfs": "block"}
#: the shim's child stops where it has begun to look at the layers, and says who it is
_STOP = """
import os
from bufferzone.storage import layers

def fingerprint(roots, salt):
    with open({at!r}, "wb") as at:
        at.write(b"%d" % os.getpid())
    with open({go!r}, "rb") as go:
        go.read()

layers.fingerprint = fingerprint
"""


class Layers(Cli):
    """A shim whose images are kept below `base`, and overlays for its containers."""

    def __init__(self, base: Path, settings: str = "") -> None:
        super().__init__(base, f'vmm = "host"\nimage_store = "{base}/store/images"\n{settings}')
        self.lower, self.top = base / "lower", base / "top"
        make_rootfs(self.lower)
        (self.lower / "etc" / "secret").write_text("must not be seen\n")
        (self.top / "etc").mkdir(parents=True)
        (self.top / "etc" / "note").write_text("of the top layer\n")
        os.setxattr(self.top / "etc", "trusted.overlay.opaque", b"y")
        os.mknod(self.top / "opt-out", 0o20000, 0)
        (self.lower / "opt-out").write_text("must not be seen\n")

    def overlay(self, name: str, *args: str) -> Path:
        """A bundle whose root file system is an overlay of its own, as an engine makes one."""
        directory = self.bundle(*args, name=name, annotations=BLOCK, root={"readonly": False})
        root = directory / "rootfs"
        for part in ("upper", "work"):
            (directory / part).mkdir()
        places = f"lowerdir={self.top}:{self.lower},upperdir={directory}/upper,workdir={directory}/work"
        self.host("mount", "-t", "overlay", "overlay", "-o", places, str(root))
        self.host("sh", "-c", f"mkdir {root}/engine; echo {name} > {root}/engine/hosts")
        return directory

    def images(self) -> list[tuple[str, int]]:
        """Name and inode of each image that is kept."""
        try:
            with os.scandir(self.base / "store" / "roots") as entries:
                return sorted((entry.name, entry.inode()) for entry in entries if entry.name != "lock")
        except FileNotFoundError:
            return []


@pytest.fixture
def bz(tmp_path):
    cli = Layers(tmp_path)
    yield cli
    cli.close()


def test_two_containers_of_the_same_layers_have_one_image_and_each_its_own_files(bz):
    await_true(lambda: bz.lower.stat().st_ctime_ns < time.time_ns() - 10**8, "an older layer", DEADLINE_S)
    kept = []
    for id in ("one", "two"):
        bz.create(id, bz.overlay(id, "pause"))
        bz("start", id)
        assert bz("exec", id, "cat", "/engine/hosts", "/etc/note").stdout == f"{id}\nof the top layer\n"
        seen = bz("exec", id, "ls", "/etc", "/opt-out", check=None)
        assert (seen.stdout, seen.returncode) == ("/etc:\nnote\n", 1)
        kept.append(bz.images())
    assert len(kept[0]) == 1
    assert kept[1] == kept[0]
    assert os.listdir(bz.base / "one" / "upper") == ["engine"]
    for id in ("one", "two"):
        bz("delete", "--force", id)
    assert bz.left() == []
    assert bz.images() == kept[0]


def test_a_checkpoint_has_what_was_on_top_of_the_image(bz, tmp_path):
    bz.create("one", bz.overlay("one", "pause"))
    bz("start", "one")
    bz("exec", "one", "sh", "-c", "echo changed > /engine/more")
    bz("checkpoint", "--image-path", str(tmp_path / "saved"), "one")
    bz.create("two", bz.base / "one", "--detach", "--image-path", str(tmp_path / "saved"), verb="restore")
    assert bz("exec", "two", "cat", "/engine/hosts", "/engine/more", "/etc/note").stdout == (
        "one\nchanged\nof the top layer\n"
    )
    for id in ("one", "two"):
        bz("delete", "--force", id)


def test_nothing_is_kept_where_the_settings_say_so(tmp_path):
    bz = Layers(tmp_path, "rootfs_cache_mib = 0")
    try:
        bz.create("one", bz.overlay("one", "pause"))
        bz("start", "one")
        assert bz("exec", "one", "cat", "/engine/hosts", "/etc/note").stdout == "one\nof the top layer\n"
        assert not (tmp_path / "store" / "roots").exists()
        bz("delete", "--force", "one")
    finally:
        bz.close()


@pytest.mark.parametrize("victim", ["shim", "child"])
def test_a_kill_while_layers_are_looked_at_leaves_nothing(bz, tmp_path, victim):
    names = [str(tmp_path / name) for name in ("at", "go")]
    for name in names:
        os.mkfifo(name)
    bz.odd_shim(_STOP.format(at=names[0], go=names[1]))
    stopped = os.open(names[0], os.O_RDONLY | os.O_NONBLOCK)
    creating = bz.start("create", "--bundle", str(bz.overlay("one", "pause")), "one")
    child = int(read(stopped))
    os.close(stopped)
    pidfd = os.pidfd_open(child)
    os.kill(state.owner_pid(str(bz.root / "one")) if victim == "shim" else child, signal.SIGKILL)
    assert select.select([pidfd], [], [], DEADLINE_S)[0]
    os.close(pidfd)
    _, said = creating.communicate(timeout=DEADLINE_S)
    assert creating.returncode == 1
    assert said.count("\n") == 1
    if victim == "child":
        assert said.startswith("bufferzone: the process that packs layers died")
    bz("delete", "--force", "one", check=None)
    assert bz.left() == []
    assert bz.images() == []
