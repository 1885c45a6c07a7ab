"""Root file systems on a disk: what the container sees is the image, what it writes stays in the guest."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.linux import mount as lm
from bufferzone.model import ImageRef
from fakes import oci_layout
from vm import private
from vm.leftovers import Watch
from vm.verbs import await_true, bundle, config, write_config
from vm.warm import Warm, makers

pytestmark = pytest.mark.vm

MARK = "bzblock"
NEEDED = [
    name for name in ("mkfs.erofs", "mkfs.ext4") if shutil.which(name, path="/usr/bin:/usr/sbin") is None
]
BLOCK = {"bufferzone.rootfs": "block"}


@pytest.fixture
def warm(tmp_path: Path, guest_image: ImageRef) -> Iterator[Warm]:
    if NEEDED:
        pytest.skip(f"not installed: {', '.join(NEEDED)}")
    warm = Warm(tmp_path / "warm", guest_image, templates=False, allow_annotations=["rootfs_image"])
    watch = Watch(warm.runtime.root, mark=MARK)
    yield warm
    warm.runtime.close()
    watch.assert_nothing_left()
    disks = tmp_path / "warm" / "disks"  # where images are packed, without names
    assert not disks.exists() or os.listdir(disks) == []


def made(directory: Path, command: str, **changes: object) -> Path:
    linux = {**config("")["linux"], "cgroupsPath": f"/{MARK}-test"}
    return bundle(directory, command, **{"annotations": BLOCK, "linux": linux, **changes})


def virtiofsd_of(warm: Warm, id: str) -> bool:
    return (warm.runtime.root / id / "virtiofsd.log").exists()


def test_a_directory_becomes_an_image_and_nothing_is_shared(warm: Warm, tmp_path: Path) -> None:
    directory = made(tmp_path / "b", "cat /note; echo changed > /note; cat /note; exec sleep 1000")
    note = directory / "rootfs" / "note"
    note.write_text("from the host\n")
    note.chmod(0o606)
    os.chown(note, 1234, 1234)
    container = warm.runtime.run("one", directory)
    container.expect("changed")
    assert container.seen[container.out] == b"from the host\nchanged\n"
    assert note.read_text() == "from the host\n"
    assert not virtiofsd_of(warm, "one")
    note.write_text("too late\n")
    warm.runtime.ok("exec", "one", "/bin/grep", "changed", "/note")
    warm.runtime.ok("delete", "--force", "one")


def test_volumes_are_shared_as_ever_and_the_files_of_engines_are_copies(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    mounts = [
        *config("")["mounts"],
        {"destination": "/data", "type": "bind", "source": str(tmp_path / "volume"), "options": ["rbind"]},
        {"destination": "/etc/hosts", "type": "bind", "source": str(tmp_path / "hosts"), "options": ["bind"]},
    ]
    command = "cat /etc/hosts; echo mine >> /etc/hosts; echo kept > /data/file; echo done; exec sleep 1000"
    container = warm.runtime.run("two", made(tmp_path / "b", command, mounts=mounts))
    container.expect("done")
    assert container.seen[container.out].startswith(b"127.0.0.1 localhost\n")
    assert (tmp_path / "volume" / "file").read_text() == "kept\n"
    assert (tmp_path / "hosts").read_text() == "127.0.0.1 localhost\n"
    assert virtiofsd_of(warm, "two")
    warm.runtime.ok("delete", "--force", "two")


def test_an_overlay_is_packed_once_and_its_guest_sees_what_it_shows(warm: Warm, tmp_path: Path) -> None:
    directory = made(tmp_path / "b", LOOK, root={"path": str(tmp_path / "merged")})
    lower, upper = directory / "rootfs", tmp_path / "upper"
    top = tmp_path / "top"
    for path in (top / "opaque", upper, tmp_path / "work", tmp_path / "merged", lower / "opaque"):
        path.mkdir(parents=True)
    for name in ("opaque/hidden", "gone", "changed", "removed"):
        (lower / name).write_text(f"of the bottom: {name}\n")
    os.link(lower / "changed", lower / "linked")
    (top / "opaque" / "seen").write_text("of the top\n")
    os.setxattr(top / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(top / "gone", stat.S_IFCHR, 0)

    def look(id: str) -> list[str]:
        """What the container finds, with what an engine wrote before."""
        places = f"lowerdir={top}:{lower},upperdir={upper},workdir={tmp_path / 'work'}"
        lm.mount("overlay", str(tmp_path / "merged"), "overlay", 0, places)
        try:
            (tmp_path / "merged" / "hosts").write_text(f"written for {id}\n")
            (tmp_path / "merged" / "removed").unlink(missing_ok=True)
            container = warm.runtime.run(id, directory)
            container.expect("that is all")
            warm.runtime.ok("delete", "--force", id)
        finally:
            lm.unmount(str(tmp_path / "merged"))
        return container.seen[container.out].decode().splitlines()

    def images() -> list[str]:
        return [name for name in os.listdir(tmp_path / "warm" / "roots") if name.endswith(".erofs")]

    await_true(lambda: settled(lower) and settled(top), "layers older than a tick", 10)
    first = look("first")
    assert first == [
        "2 /linked",
        "of the bottom: changed",
        "/opaque/seen",
        "/bin/busybox",
        "written for first",
        "that is all",
    ]
    kept = images()
    assert len(kept) == 1
    assert look("second") == [*first[:4], "written for second", "that is all"]
    assert images() == kept
    (lower / "changed").write_text("of the BOTTOM: changed\n")  # in place: its directory is as it was
    await_true(lambda: settled(lower), "a layer older than a tick", 10)
    assert look("third")[1] == "of the BOTTOM: changed"
    assert len(images()) == 2


#: what an overlay could get wrong
LOOK = (
    "n=$(ls -l /linked); set -- $n; echo $2 /linked; cat /linked; "
    "ls /gone /removed /opaque/hidden 2>/dev/null; "
    "ls /opaque/*; ls /bin/busybox; cat /hosts; echo that is all; exec sleep 1000"
)


def settled(layer: Path) -> bool:
    """Whether who writes to the layer now gives a file another time."""
    newest = max(path.lstat().st_ctime_ns for path in layer.rglob("*"))
    return newest < time.time_ns() - 10**8


@pytest.mark.parametrize("kind", ["erofs", "ext4"])
def test_an_image_file_is_the_root(warm: Warm, tmp_path: Path, kind: str) -> None:
    directory = made(tmp_path / "b", "cat /which; exec sleep 1000")
    root, image = directory / "rootfs", tmp_path / "root.img"
    (root / "which").write_text(f"from {kind}\n")
    words = {
        "erofs": ["mkfs.erofs", "--quiet", str(image), str(root)],
        "ext4": ["mkfs.ext4", "-q", "-d", str(root), str(image), "32M"],
    }
    subprocess.run(words[kind], check=True, capture_output=True)
    shutil.rmtree(root)
    root.mkdir()
    value = {**config("cat /which; exec sleep 1000"), "annotations": {"bufferzone.rootfs_image": str(image)}}
    value["linux"]["cgroupsPath"] = f"/{MARK}-test"
    write_config(directory, value)
    before = image.read_bytes()
    container = warm.runtime.run("three", directory)
    container.expect(f"from {kind}")
    warm.runtime.ok("exec", "three", "/bin/sh", "-c", "echo x > /new")
    warm.runtime.ok("delete", "--force", "three")
    assert image.read_bytes() == before


def test_an_image_that_is_none_is_one_line(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(bytes(8192))
    annotations = {"bufferzone.rootfs_image": str(tmp_path / "junk")}
    refused = warm.runtime.try_create("four", made(tmp_path / "b", "true", annotations=annotations))
    assert refused.line == f"bufferzone: not an EROFS or ext4 image: {tmp_path}/junk"


def test_a_template_has_the_slot_and_the_clone_has_the_image(tmp_path: Path, guest_image: ImageRef) -> None:
    if NEEDED:
        pytest.skip(f"not installed: {', '.join(NEEDED)}")
    warm = Warm(tmp_path / "warm", guest_image, rootfs="block")
    try:
        warm.make_template()
        for id in ("a", "b"):
            directory = made(tmp_path / id, "cat /which; exec sleep 1000", annotations={})
            (directory / "rootfs" / "which").write_text(f"root of {id}\n")
            warm.runtime.run(id, directory).expect(f"root of {id}")
            assert warm.begun(id) == "warm"
            warm.runtime.ok("delete", "--force", id)
        assert not makers()
    finally:
        warm.runtime.close()


def test_a_disk_is_read_no_faster_than_its_own_limit_whatever_the_template_was_made_with(
    tmp_path: Path, guest_image: ImageRef
) -> None:
    if NEEDED:
        pytest.skip(f"not installed: {', '.join(NEEDED)}")
    warm = Warm(tmp_path / "warm", guest_image, rootfs="block", disk_kib_per_s=1024)
    read = ("/bin/dd", "if=/noise", "of=/copy", "bs=64k")

    def started(id: str, **annotations: str) -> str:
        directory = made(tmp_path / id, "echo up; exec sleep 1000", annotations=annotations)
        (directory / "rootfs" / "noise").write_bytes(os.urandom(4 << 20))  # nothing packs it smaller
        warm.runtime.run(id, directory).expect("up")
        assert warm.begun(id) == "warm"
        processes = json.loads((warm.runtime.root / id / "leftovers.json").read_text())["processes"]
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid, _ in processes]
        (line,) = [line for line in lines if "qemu-system" in line]
        return line

    try:
        warm.make_template()
        keys = warm.keys()
        assert "throttle" in started("lowered", **{"bufferzone.disk_kib_per_s": "512"})
        began = time.monotonic()
        warm.runtime.ok("exec", "lowered", *read)
        # 8 s; a tenth of a second's worth may come at once, and what it starts with is little
        assert time.monotonic() - began > 4
        warm.runtime.ok("delete", "--force", "lowered")
        raised = made(tmp_path / "raised", "true", annotations={"bufferzone.disk_kib_per_s": "2048"})
        line = warm.runtime.try_create("raised", raised).line
        where = "config.json: annotations.bufferzone.disk_kib_per_s"
        assert line == f"bufferzone: {where}: this host's limit is 1024"
        warm.set(disk_kib_per_s=0)
        assert "throttle" not in started("free")
        warm.runtime.ok("exec", "free", *read)
        warm.runtime.ok("delete", "--force", "free")
        assert warm.keys() == keys
    finally:
        warm.runtime.close()


def test_podman_runs_it_and_refuses_to_copy(podman, nothing_left, tmp_path: Path) -> None:
    annotation = "--annotation=bufferzone.rootfs=block"
    podman("run", "--detach", "--name", "block", annotation, podman.image, "sleep", "1000", timeout_s=120)
    assert "localhost" in podman("exec", "block", "cat", "/etc/hosts").text
    assert podman("exec", "block", "sh", "-c", "echo x > /srv/new; cat /srv/new").text == "x"
    (tmp_path / "file").write_text("from the host")
    assert podman.any("cp", "block:/srv/plain", tmp_path / "copy").status != 0
    assert podman.any("cp", tmp_path / "file", "block:/srv/file").status != 0
    assert "sleep" in podman("top", "block", "args").text
    podman("rm", "--force", "--time", "0", "block")


def test_an_image_of_podmans_is_packed_once(
    podman, nothing_left, tmp_path: Path, guest_image: ImageRef
) -> None:
    image = podman("pull", "--quiet", oci_layout.usual(tmp_path / "layout")).text
    rows = {"image": guest_image.directory, "image_store": f"{tmp_path}/images", "rootfs": "block"}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in rows.items())
    (tmp_path / "settings").write_text(f"{text}templates = false\n")
    podman.before = (*private.words(settings=str(tmp_path / "settings")), "/usr/bin/env")
    look = "cat /etc/layer /etc/hosts; echo; ls /etc; echo mine > /etc/layer"
    try:
        run = ("run", "--rm", "--name", "same", "--hostname", "box", image, "sh", "-c", look)
        seen = [podman(*run).text for _ in range(2)]
    finally:
        podman.before = ()
        podman("rmi", image)
    assert seen[0] == seen[1]
    assert seen[0].startswith("top\n")
    assert "box" in seen[0]
    listed = seen[0].splitlines()
    assert "passwd" in listed
    assert "gone" not in listed
    (kept,) = [name for name in os.listdir(tmp_path / "roots") if name != "lock"]
    assert kept.endswith(".erofs")
