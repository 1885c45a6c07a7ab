"""Mounts of config.json that are made of host paths: they work, or are refused before anything is made."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bufferzone.cli.oci.spec import default_spec
from flow.cli import Cli, needs_host

pytestmark = needs_host

_NO_DEVICE = "source: ext4 needs a block device, which this is not"
_IMAGE = "{base}/image"
_HINT = "mount it on the host, and share that directory with a bind mount"


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").write_text("lower\n")
    (tmp_path / "image").write_bytes(bytes(4096))
    yield cli
    cli.close()


@pytest.fixture
def disk(tmp_path):
    """A loop device with an ext4 that has `file`."""
    if not (shutil.which("losetup") and shutil.which("mkfs.ext4")):
        pytest.skip("needs losetup and mkfs.ext4")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("on the disk\n")
    image = str(tmp_path / "disk")
    subprocess.run(["truncate", "--size=8M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(tmp_path / "tree"), image], check=True)
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr}")
    yield done.stdout.strip()
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


def bundle(bz, program, kind, source, options):
    entry = {"destination": "/m", "type": kind, "source": source, "options": options}
    mounts = [*default_spec(rootless=False)["mounts"], entry]
    return str(bz.bundle("sh", "-c", program, mounts=mounts, root={"path": "rootfs", "readonly": False}))


def test_an_overlay_of_the_host_is_there(bz):
    given = ",".join(f"{name}dir={bz.base}/{name}" for name in ("lower", "upper", "work"))
    path = bundle(bz, "cat /m/file; echo new >/m/new", "overlay", "overlay", [given])
    assert bz("run", "--bundle", path, "one").stdout == "lower\n"
    assert (bz.base / "upper" / "new").read_text() == "new\n"
    assert not (bz.base / "lower" / "new").exists()


def test_names_of_an_overlay_may_have_colons_and_commas(bz):
    odd = bz.base / "a:b,c"
    (bz.base / "lower").rename(odd)
    given = [f"lowerdir={odd}:/usr".replace("a:b,c", "a\\:b\\,c")]
    assert bz("run", "--bundle", bundle(bz, "cat /m/file", "overlay", "", given), "one").stdout == "lower\n"


def test_a_file_system_on_a_device_of_the_host_is_there(bz, disk):
    path = bundle(bz, "cat /m/file; echo new >/m/new; cat /m/new", "ext4", disk, [])
    assert bz("run", "--bundle", path, "one").stdout == "on the disk\nnew\n"
    path = bundle(bz, "cat /m/new; echo x >/m/new", "ext4", disk, ["ro"])
    done = bz("run", "--bundle", path, "two", check=1)
    assert (done.stdout, "Read-only file system" in done.stderr) == ("new\n", True)


def test_what_the_kernel_says_of_a_mount_is_told_with_its_place(bz, disk):
    done = bz("run", "--bundle", bundle(bz, "true", "ext4", disk, ["nonsense"]), "one", check=1)
    line = f"config.json: mounts[7]: cannot mount {disk} (ext4): Invalid argument (hint: {_HINT})"
    assert done.stderr == f"bufferzone: {line}\n"
    assert bz.left() == []


@pytest.mark.parametrize(
    ("kind", "source", "options", "line"),
    [
        ("overlay", "overlay", [], "options: an overlay needs lowerdir=DIRECTORY"),
        ("overlay", "", ["lowerdir=/nowhere:/usr"], "options: lowerdir: no such directory: /nowhere"),
        ("overlay", "", ["lowerdir=/usr:/nowhere"], "options: lowerdir: no such directory: /nowhere"),
        ("overlay", "", ["lowerdir=/usr,upperdir=/no"], "options: upperdir: no such directory: /no"),
        (
            "overlay",
            "",
            ["lowerdir=/usr"],
            "options: an overlay without upperdir needs two directories in lowerdir",
        ),
        ("overlay", "", ["lowerdir=usr:/usr"], "options: lowerdir: not an absolute path: usr"),
        ("ext4", "", [], f"source: missing: ext4 needs a block device (hint: {_HINT})"),
        ("ext4", "/dev/none", [], f"source: no such file or directory: /dev/none (hint: {_HINT})"),
        (
            "ext4",
            "/dev/null",
            ["ro"],
            f"{_NO_DEVICE}: /dev/null (hint: {_HINT})",
        ),
        (
            "ext4",
            "{base}/image",
            ["loop"],
            f"{_NO_DEVICE}: {_IMAGE} (hint: losetup gives a file one; or {_HINT})",
        ),
        ("fuse.sshfs", "host:/x", [], f"type: fuse.sshfs needs a program that serves it (hint: {_HINT})"),
        (
            "nosuchfs",
            "x",
            [],
            f"type: unknown file system type, here and in the guest: nosuchfs (hint: {_HINT})",
        ),
        (
            "a,b\nc",
            "x",
            [],
            f"type: unknown file system type, here and in the guest: a,b c (hint: {_HINT})",
        ),
    ],
)
def test_what_cannot_be_mounted_is_refused_before_anything_is_made(bz, kind, source, options, line):
    bz.odd_shim("raise SystemExit('the shim was started')")
    path = bundle(bz, "true", kind, source.format(base=bz.base), options)
    done = bz("create", "--bundle", path, "one", check=1)
    assert done.stderr == f"bufferzone: config.json: mounts[7].{line.format(base=bz.base)}\n"
    assert bz.left() == []


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "virtiofs", "xfs", "autofs", "sockfs"])
def test_any_other_type_is_one_line_that_says_where_and_what_to_do(bz, kind):
    path = bundle(bz, "true", kind, "/dev/null", ["ro"])
    done = bz("create", "--bundle", path, "one", check=1)
    assert done.stderr.startswith("bufferzone: config.json: mounts[7]")
    assert done.stderr.endswith(f" (hint: {_HINT})\n")
    assert kind in done.stderr
    assert done.stderr.count("\n") == 1
    assert bz.left() == []
