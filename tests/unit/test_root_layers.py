"""A root file system that is an overlay: what a guest gets of it, and which image may be used again."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.errors import CallerError, HostError
from bufferzone.guest import block
from bufferzone.guest import layers as guest_layers
from bufferzone.linux import mount as mnt
from bufferzone.record import replace
from bufferzone.sandbox import rootlayers
from bufferzone.storage import layers, overlay
from bufferzone.storage.rootcache import Cache
from bufferzone.vmm.firecracker import place
from bufferzone.wire import agent
from unit.guest_harness import needs_root
from unit.test_vmm_firecracker import SPEC as FIRECRACKER

MIB = 1 << 20
pytestmark = [
    needs_root,
    pytest.mark.skipif(not os.path.exists("/usr/bin/mkfs.erofs"), reason="not installed: mkfs.erofs"),
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices"),
]
ROOM = layers.Room(entries=100, bytes=1 << 16)


class World:
    """Two layers, what was written on top, and the overlay of all; `roots` is where images are kept."""

    def __init__(self, base: Path) -> None:
        self.base, self.merged, self.roots = base, base / "merged", base / "roots"
        self.lower = [base / name for name in ("top", "bottom")]
        self.upper = base / "upper"
        self._mounted: list[Path] = []
        for path in (*self.lower, self.upper, self.merged, base / "work"):
            path.mkdir()
        top, bottom = self.lower
        for path in (top / "opaque", bottom / "opaque", bottom / "dir", bottom / "gone-dir"):
            path.mkdir()
        (bottom / "opaque" / "hidden").write_text("must not be seen\n")
        (bottom / "gone").write_text("must not be seen\n")
        (bottom / "gone-dir" / "too").write_text("must not be seen\n")
        (bottom / "dir" / "file").write_text("of the bottom\n")
        (bottom / "big").write_bytes(os.urandom(MIB))
        (bottom / "replaced").write_text("of the bottom\n")
        os.link(bottom / "dir" / "file", bottom / "dir" / "linked")
        os.setxattr(bottom / "dir" / "file", "user.note", b"kept")
        (bottom / "tool").write_text("#!/bin/sh\n")
        os.setxattr(bottom / "tool", "security.capability", bytes.fromhex("0100000202000000" + "00" * 12))
        os.setxattr(top / "opaque", "trusted.overlay.opaque", b"y")
        (top / "opaque" / "seen").write_text("of the top\n")
        os.mknod(top / "gone", stat.S_IFCHR, 0)
        os.mknod(top / "gone-dir", stat.S_IFCHR, 0)
        (top / "replaced").write_text("of the top\n")
        os.chown(top / "replaced", 1234, 4321)
        (top / "blob").write_bytes(os.urandom(MIB))  # too large to be sent

    def mount(self, *, options: str = "") -> None:
        lower = ":".join(map(str, self.lower))
        data = f"{options}lowerdir={lower},upperdir={self.upper},workdir={self.base / 'work'}"
        mnt.mount("overlay", str(self.merged), "overlay", 0, data)
        self._mounted.append(self.merged)

    def unmount(self) -> None:
        while self._mounted:
            mnt.unmount(str(self._mounted.pop()), mnt.MNT_DETACH)

    def settle(self) -> None:
        """What is younger than a tick of the kernel's clock is not believed."""
        newest = max(found.st_ctime_ns for layer in self.lower for _, found in overlay.walk(str(layer)))
        while time.time_ns() < newest + layers._TICK_NS:
            os.sched_yield()

    def start(self, **changes: Any) -> tuple[Any, rootlayers.Layered]:
        found = overlay.find(str(self.merged))
        assert found is not None
        values: dict[str, Any] = {
            "rootfs": str(self.merged),
            "overlay": found,
            "uid": 2_000_000_001,
            "most": 64 * MIB,
            "disks": str(self.base / "disks"),
            "kept": str(self.roots),
            "kept_bytes": 64 * MIB,
        }
        order = rootlayers.Order(**{**values, **changes})
        return order, rootlayers.Layered(order)

    def pack(self, **changes: Any) -> tuple[int, list[agent.Layer]]:
        _, work = self.start(**changes)
        try:
            return work.image(), work.layers
        finally:
            work.close()

    def images(self) -> list[str]:
        return sorted(name for name in os.listdir(self.roots) if name.endswith(".erofs"))

    def guest(self, image: int, above: list[agent.Layer]) -> Path:
        """What a guest shows."""
        below, memory, root = (self.base / f"guest-{name}" for name in ("image", "memory", "root"))
        below.mkdir()
        name = f"/proc/{os.getpid()}/fd/{image}"
        subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", name, str(below)], check=True)
        self._mounted.append(below)
        block.put_together(str(below), above, str(memory), str(root))
        self._mounted += [memory, root]
        return root


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.unmount()


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that a program would find out, but for numbers of inodes."""
    found, first = {}, dict[tuple[int, int], str]()
    for path, facts in overlay.walk(str(root)):
        place = root / path
        kind = stat.S_IFMT(facts.st_mode)
        data = place.read_bytes() if kind == stat.S_IFREG else b""
        target = os.readlink(place) if kind == stat.S_IFLNK else ""
        names = os.listxattr(place, follow_symlinks=False)
        xattrs = {name: os.getxattr(place, name, follow_symlinks=False) for name in names}
        same = "" if kind == stat.S_IFDIR else first.setdefault((facts.st_dev, facts.st_ino), path)
        mtime = facts.st_mtime_ns if path else 0  # the root is the guest's own
        found[path] = (
            facts.st_mode,
            facts.st_uid,
            facts.st_gid,
            facts.st_rdev,
            mtime,
            data,
            target,
            same,
            xattrs,
        )
    return found


def test_a_guest_sees_what_the_overlay_shows_and_the_second_time_nothing_is_packed(world: World) -> None:
    world.mount()
    merged = world.merged
    (merged / "etc").mkdir()
    (merged / "etc" / "hosts").write_text("")
    (merged / "etc" / "link").symlink_to("hosts")
    os.link(merged / "etc" / "hosts", merged / "etc" / "names")
    (merged / "dir" / "file").unlink()
    (merged / "replaced").write_text("of the engine\n")
    os.mkfifo(merged / "dir" / "pipe", 0o640)
    os.chmod(merged, 0o711)
    world.settle()
    image, above = world.pack()
    (kept,) = world.images()
    again, same = world.pack()
    assert os.path.samestat(os.fstat(again), os.stat(world.roots / kept))
    assert [layer.encode() for layer in same] == [layer.encode() for layer in above]
    seen = tree(world.guest(image, above))
    assert seen == tree(merged)
    assert not {"gone", "gone-dir", "opaque/hidden", "dir/file"} & set(seen)
    assert seen["dir/linked"][-1] == {"user.note": b"kept"}
    assert "security.capability" in seen["tool"][-1]
    for fd in (image, again):
        os.close(fd)


def test_a_small_layer_goes_to_the_guest_and_others_share_the_image_below_it(world: World) -> None:
    (world.lower[0] / "blob").unlink()
    world.mount()
    world.settle()
    image, above = world.pack()
    assert len(above) == 2
    seen = tree(world.guest(image, above))
    assert seen == tree(world.merged)
    assert not {"gone", "gone-dir", "opaque/hidden"} & set(seen)
    before = world.images()
    world.unmount()
    (world.lower[0] / "another").write_text("of another image\n")
    world.mount()
    os.close(world.pack()[0])
    assert world.images() == before
    os.close(image)


def write_deep(world: World) -> None:
    """In place, with the size and the time of the last write that it had."""
    path = world.lower[1] / "dir" / "file"
    before = path.stat()
    path.write_text("of the BOTTOM\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_owner(world: World) -> None:
    os.chown(world.lower[1] / "dir" / "file", 1, 1)


def make_anew(world: World) -> None:
    """The same names, times and contents."""
    old = world.lower[1].with_name("old")
    world.lower[1].rename(old)
    subprocess.run(["cp", "-a", str(old), str(world.lower[1])], check=True)


def turn_round(world: World) -> None:
    (world.lower[0] / "blob").rename(world.lower[1] / "blob")
    world.lower.reverse()
    (world.lower[0] / "big").touch()


@pytest.mark.parametrize("change", [write_deep, change_owner, make_anew, turn_round])
def test_a_layer_that_changed_is_packed_anew(world: World, change: Any) -> None:
    world.mount()
    world.settle()
    os.close(world.pack()[0])
    (before,) = world.images()
    world.unmount()
    change(world)
    world.mount()
    world.settle()
    image, above = world.pack()
    assert len(world.images()) == 2
    assert not os.path.samestat(os.fstat(image), os.stat(world.roots / before))
    assert tree(world.guest(image, above)) == tree(world.merged)
    os.close(image)


def test_a_layer_that_was_written_just_now_is_packed_and_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write in the same tick of the clock would not show."""
    monkeypatch.setattr(layers, "_TICK_NS", 3600 * 10**9)
    world.mount()
    image, above = world.pack()
    assert world.images() == []
    assert tree(world.guest(image, above)) == tree(world.merged)
    os.close(image)


def redirected(world: World) -> None:
    world.mount(options="redirect_dir=on,")
    (world.merged / "dir").rename(world.merged / "moved")


def metadata_alone(world: World) -> None:
    world.mount(options="redirect_dir=on,metacopy=on,")
    (world.merged / "big").chmod(0o600)


def much(world: World) -> None:
    world.mount()
    (world.merged / "much").write_bytes(bytes(MIB))


def many(world: World) -> None:
    world.mount()
    (world.merged / "many").mkdir()
    for number in range(1100):
        (world.merged / "many" / str(number)).touch()


def attribute(world: World) -> None:
    world.mount()
    (world.merged / "noted").touch()
    os.setxattr(world.merged / "noted", "user.note", b"a guest's memory cannot have this before Linux 6.6")


def elsewhere(world: World) -> None:
    """As an engine that shows its layers with other owners for a moment: by now the path is another's."""
    world.mount()
    world.lower[1].rename(world.base / "really")
    world.lower[1].mkdir()


def not_the_upper(world: World) -> None:
    world.mount()
    world.upper.rename(world.base / "really")
    world.upper.mkdir()


@pytest.mark.parametrize(
    "make", [redirected, metadata_alone, much, many, attribute, elsewhere, not_the_upper]
)
def test_what_is_not_understood_is_packed_as_one_directory(world: World, make: Any) -> None:
    make(world)
    world.settle()
    image, above = world.pack()
    assert above == []
    assert world.images() == []
    assert tree(world.guest(image, above)) == tree(world.merged)
    os.close(image)


def test_an_overlay_of_layers_with_redirects_is_read_as_it_is(world: World) -> None:
    """A lower layer that was an upper one of such an overlay; the host's overlay puts it together."""
    redirected(world)
    (world.merged / "blob").write_bytes(os.urandom(MIB))
    world.unmount()
    world.lower.insert(0, world.upper)
    world.upper = world.base / "newer"
    world.upper.mkdir()
    world.mount(options="redirect_dir=on,")
    world.settle()
    image, above = world.pack()
    assert len(above) == 1
    seen = tree(world.guest(image, above))
    assert seen == tree(world.merged)
    assert seen["moved/file"][5] == b"of the bottom\n"
    assert len(world.images()) == 1
    os.close(image)


@pytest.mark.parametrize("make", [World.mount, many], ids=["kept", "for this container alone"])
def test_the_slot_of_a_vmm_shows_the_image_though_its_maker_left_the_mount_namespace(
    world: World, make: Any
) -> None:
    """A kernel clones no mount of another namespace (open_tree(2): EINVAL)."""
    make(world)
    world.settle()
    spec = replace(FIRECRACKER, directory=str(world.base / "vmm"))
    for turn in ("made", "found", "found later"):
        if turn == "found later":  # and given its lasting name
            for path in world.roots.glob("*.erofs"):
                os.utime(path, ns=(0, time.time_ns() - 61 * 10**9))
        here = place.Place(spec, 2_000_000_002)
        image, _ = world.pack()
        try:
            here.show("rootfs", image)
            assert os.path.samestat(os.stat(world.base / "vmm" / "disk-rootfs"), os.fstat(image)), turn
            assert not list(world.roots.glob("shown-*"))
        finally:
            here.close()
            os.close(image)


def test_makers_at_once_keep_one_image(world: World) -> None:
    world.mount()
    world.settle()
    works = [world.start()[1] for _ in range(3)]
    images = [work.image() for work in works]
    assert len(world.images()) == 1
    for work, image in zip(works, images, strict=True):
        work.close()
        os.close(image)


def test_a_maker_that_is_killed_leaves_nothing_and_is_told(world: World) -> None:
    world.mount()
    _, work = world.start()
    work._child.kill()
    with pytest.raises(HostError, match="the process that packs layers died"):
        work.image()
    work.close()
    left = os.listdir(world.roots) if world.roots.exists() else []
    assert left == []
    os.close(world.pack()[0])


def test_what_cannot_be_packed_is_told_as_ever(world: World) -> None:
    world.mount()
    with pytest.raises(HostError, match=f"^cannot pack {world.merged} into an image: it would be larger"):
        world.pack(most=MIB)
    assert world.images() == []


def test_a_directory_that_somebody_else_may_write_keeps_nothing(world: World) -> None:
    world.mount()
    world.settle()
    world.roots.mkdir()
    os.chmod(world.roots, 0o777)
    image, above = world.pack()
    assert above == []
    assert tree(world.guest(image, above)) == tree(world.merged)
    assert os.listdir(world.roots) == []
    os.close(image)


BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def digest(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(str(tmp_path / "roots"), 3 * MIB)
    yield cache
    cache.close()


def kept(cache: Cache, number: int, size: int = MIB) -> str:
    """Keep an image of about this size; its path. Nobody has it open."""
    fd = os.open(cache.path, os.O_TMPFILE | os.O_RDWR, 0o444)
    os.pwrite(fd, os.urandom(size - 8192), 8192)
    os.pwrite(
        fd, b"\xe2\xe1\xf5\xe0" + bytes(8) + b"\x0c" + bytes(23) + (size >> 12).to_bytes(4, "little"), 1024
    )
    os.fchmod(fd, 0o444)
    cache.keep(fd, digest(number))
    os.close(fd)
    return os.path.join(cache.path, f"{digest(number)}.{BOOT}.erofs")


def test_the_least_recently_used_image_goes_and_none_that_is_in_use(cache: Cache) -> None:
    paths = [kept(cache, number) for number in range(3)]
    in_use = cache.open(digest(0))
    for number in (2, 1):
        os.close(cache.open(digest(number)))
    os.utime(paths[0], ns=(0, os.stat(paths[0]).st_mtime_ns))
    paths.append(kept(cache, 3))
    assert [os.path.exists(path) for path in paths] == [True, True, False, True]
    os.close(in_use)
    os.utime(paths[0], ns=(0, os.stat(paths[0]).st_mtime_ns))
    kept(cache, 4)
    assert not os.path.exists(paths[0])


def test_an_image_gets_its_lasting_name_once_the_kernel_has_written_it(cache: Cache) -> None:
    path = kept(cache, 0)
    fd = cache.open(digest(0))
    assert os.path.exists(path)
    os.utime(path, ns=(0, time.time_ns() - 61 * 10**9))
    same = cache.open(digest(0))
    lasting = os.path.join(cache.path, f"{digest(0)}.erofs")
    assert os.path.samestat(os.fstat(fd), os.stat(lasting))
    assert not os.path.exists(path)
    again = cache.open(digest(0))
    assert os.path.samestat(os.fstat(same), os.fstat(again))
    for each in (fd, same, again):
        os.close(each)
    os.close(cache.open(digest(0)))


def test_what_a_power_failure_may_have_cut_short_is_not_used_and_goes(cache: Cache) -> None:
    path = kept(cache, 0)
    before = path.replace(BOOT, "00000000-0000-4000-8000-000000000000")
    os.rename(path, before)
    assert cache.open(digest(0)) == -1
    kept(cache, 1)
    assert not os.path.exists(before)


def test_an_image_larger_than_all_that_is_kept_is_not_kept(cache: Cache) -> None:
    path = kept(cache, 0)
    assert not os.path.exists(kept(cache, 1, size=4 * MIB))
    assert os.path.exists(path)


def shorten(path: str) -> None:
    os.truncate(path, MIB // 2)


def give_away(path: str) -> None:
    os.chown(path, 1234, 1234)


def open_up(path: str) -> None:
    os.chmod(path, 0o666)


def link(path: str) -> None:
    os.rename(path, f"{path}.real")
    os.symlink(f"{path}.real", path)


def pipe(path: str) -> None:
    os.unlink(path)
    os.mkfifo(path, 0o444)


@pytest.mark.parametrize("change", [shorten, give_away, open_up, link, pipe])
def test_an_entry_that_cannot_be_believed_is_none_and_is_replaced(cache: Cache, change: Any) -> None:
    path = kept(cache, 0)
    change(path)
    assert cache.open(digest(0)) == -1
    if change is not link:  # a name that is no file of ours is left to who made it
        kept(cache, 0)
        fd = cache.open(digest(0))
        assert fd >= 0
        os.close(fd)


def test_an_image_is_locked_as_long_as_somebody_has_it(cache: Cache) -> None:
    path = kept(cache, 0)
    fd = cache.open(digest(0))
    copy = os.dup(fd)
    os.close(fd)
    other = os.open(path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(copy)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert cache.open(digest(0)) == -1  # it is being removed
    os.close(other)


@pytest.mark.parametrize(
    "options",
    [
        "rw,lowerdir=l/A:l/B,upperdir=/u,workdir=/w",
        "rw,lowerdir=/a\\134:b:/c,upperdir=/u,workdir=/w",
        "rw,lowerdir=/a::/data,upperdir=/u,workdir=/w",
        "rw,lowerdir+=/a,lowerdir+=/b",
        "rw,lowerdir=/a,upperdir=/u,workdir=/w,context=system_u:object_r:x:s0",
        "rw",
    ],
)
def test_options_that_are_not_known_are_not_guessed_at(options: str) -> None:
    with pytest.raises(overlay.Unknown):
        overlay.parse(options)


def test_options_that_decide_how_layers_are_read_are_given_on() -> None:
    found = overlay.parse("rw,lowerdir=/a:/b,upperdir=/u,workdir=/w,redirect_dir=on,uuid=on,metacopy=on")
    assert found == overlay.Overlay(
        upper="/u", lowers=("/a", "/b"), options=("redirect_dir=on", "metacopy=on")
    )
    assert overlay.parse("ro,lowerdir=/a:/b,userxattr").prefix == "user.overlay."


def test_what_is_mounted_in_a_layer_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "layer" / "below").mkdir(parents=True)
    mnt.mount("test", str(tmp_path / "layer" / "below"), "tmpfs")
    try:
        with pytest.raises(overlay.Unknown, match="something is mounted in the layer"):
            layers.fingerprint([str(tmp_path / "layer")], "")
    finally:
        mnt.unmount(str(tmp_path / "layer" / "below"))


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a//b", b"a/./b", b"a/.."])
def test_a_guest_writes_nothing_beside_a_layer(tmp_path: Path, path: bytes) -> None:
    entries = [
        agent.LayerEntry(mode=stat.S_IFDIR | 0o755),
        agent.LayerEntry(path=b"a", mode=stat.S_IFDIR | 0o755),
        agent.LayerEntry(path=path, mode=stat.S_IFREG | 0o644, data=b"x"),
    ]
    with pytest.raises(CallerError, match="not a path in a layer"):
        guest_layers.write(str(tmp_path / "layer"), agent.Layer(entries=entries))
    assert not (tmp_path / "x").exists()
