"""The waiter moves into the image's root as root of the host: what the image can make of that."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")

# the child stays in its own mount namespace; what it saw is printed as JSON
_CHILD = """
import errno, json, os, sys
from bufferzone.client import waiter_root
from bufferzone.client.job import Face
rootfs, mounts, guests = sys.argv[1], *json.loads(sys.argv[2])
from bufferzone.linux import mount, process
process.unshare(process.CLONE_NEWNS)
mount.mount("", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
mount.mount(rootfs, rootfs, "", mount.MS_BIND)
table = waiter_root.enter_root(Face(rootfs, mounts, guests), on_disk=False)
looks = [name for name in sys.argv[3:] if name.startswith("/")]
seen = {name: sorted(os.listdir(name)) for name in looks}
refused = []
for name in sys.argv[3:]:
    try:
        if name.startswith("+"):
            os.mkdir(name[1:] + "/new")
    except OSError as error:
        refused.append(errno.errorcode[error.errno])
print(json.dumps({"table": table is not None, "seen": seen, "refused": refused}))
"""


def run(rootfs, *look, mounts=(), guests=()):
    argv = [sys.executable, "-c", _CHILD, str(rootfs), json.dumps([mounts, guests]), *look]
    path = os.pathsep.join(sys.path)
    return subprocess.run(argv, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=120)


def enter(rootfs, *look, mounts=(), guests=()):
    done = run(rootfs, *look, mounts=mounts, guests=guests)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def rootfs(tmp_path):
    path = tmp_path / "rootfs"
    path.mkdir()
    return path


@pytest.mark.parametrize("place", ["/", "..", "vol", "missing"])
def test_a_link_in_place_of_proc_leads_nowhere(rootfs, place):
    (rootfs / "vol").mkdir()
    (rootfs / "proc").symlink_to(place)
    assert enter(rootfs)["table"] is False
    assert sorted(os.listdir(rootfs)) == ["proc", "vol"]  # nothing was written into the image
    assert os.listdir(rootfs / "vol") == []


def test_a_directory_in_place_of_proc_shows_the_table(rootfs):
    (rootfs / "proc").mkdir()
    assert enter(rootfs)["table"] is True
    assert os.listdir(rootfs / "proc") == []


def test_a_root_file_system_behind_a_link_is_entered(rootfs, tmp_path):
    (rootfs / "here").touch()
    (tmp_path / "link").symlink_to("rootfs")
    assert enter(tmp_path / "link", "/")["seen"] == {"/": ["here"]}


def test_a_volume_on_a_link_is_where_the_link_leads_within_the_image(rootfs, tmp_path):
    (rootfs / "run").mkdir()
    (rootfs / "link").symlink_to("/run")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/here").touch()
    volume = (str(tmp_path / "data"), "/link", False)
    assert enter(rootfs, "/run", mounts=[volume])["seen"] == {"/run": ["here"]}


@pytest.mark.parametrize("kind", ["loop", "file", "fifo", "gone"])
def test_a_volume_without_a_place_is_an_error_that_names_it_and_nothing_is_written(rootfs, tmp_path, kind):
    place = rootfs / "place"
    {"loop": lambda: place.symlink_to("place"), "file": place.touch, "gone": lambda: None}.get(
        kind, lambda: os.mkfifo(place)
    )()
    (tmp_path / "data").mkdir()
    before = os.listdir(rootfs)
    done = run(rootfs, mounts=[(str(tmp_path / "data"), "/place", False)])
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bufferzone.errors.HostError: cannot show the volume '/place' on the host: ")
    assert os.listdir(rootfs) == before


@pytest.mark.parametrize("target", ["/tmp/data", "/var/data/below"])
def test_a_volume_on_what_is_mounted_in_the_guest_alone_is_passed_over(rootfs, tmp_path, target):
    (rootfs / "tmp").mkdir()
    (rootfs / "var").symlink_to("tmp")  # links are the guest's to follow, and so they are here
    (tmp_path / "data").mkdir()
    volume = (str(tmp_path / "data"), target, False)
    assert enter(rootfs, mounts=[volume], guests=["/tmp"])["table"] is False
    assert run(rootfs, mounts=[volume], guests=["/tm"]).returncode != 0


def test_nothing_can_be_copied_to_where_the_guest_has_a_tmpfs(rootfs):
    (rootfs / "tmp").mkdir()
    (rootfs / "tmp/old").touch()
    found = enter(
        rootfs, "/tmp", "+/tmp", mounts=[("", "/tmp", True), ("", "/missing", True)], guests=["/tmp"]
    )
    assert (found["seen"], found["refused"]) == ({"/tmp": []}, ["EROFS"])
    assert os.listdir(rootfs) == ["tmp"]
    assert os.listdir(rootfs / "tmp") == ["old"]


def test_volumes_within_a_tmpfs_of_the_guest_are_where_the_guest_has_them(rootfs, tmp_path):
    (rootfs / "tmp").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/here").touch()
    mounts = [
        ("", "/tmp", True),
        (str(tmp_path / "data"), "/tmp/a/b", False),
        (str(tmp_path / "data/here"), "/tmp/file", False),
    ]
    found = enter(rootfs, "/tmp", "/tmp/a/b", "+/tmp", "+/tmp/a/b", mounts=mounts, guests=["/tmp"])
    assert found["seen"] == {"/tmp": ["a", "file"], "/tmp/a/b": ["here"]}
    assert found["refused"] == ["EROFS"]  # the volume's new directory is in the volume
    assert sorted(os.listdir(tmp_path / "data")) == ["here", "new"]
    assert os.listdir(rootfs / "tmp") == []


def test_a_tmpfs_of_the_guest_on_a_volume_leaves_the_rest_of_that_as_it_is(rootfs, tmp_path):
    (rootfs / "data").mkdir()
    (tmp_path / "data/tmp").mkdir(parents=True)
    mounts = [(str(tmp_path / "data"), "/data", False), ("", "/data/tmp", True)]
    found = enter(rootfs, "+/data", "+/data/tmp", mounts=mounts, guests=["/data/tmp"])
    assert found["refused"] == ["EROFS"]
    assert sorted(os.listdir(tmp_path / "data")) == ["new", "tmp"]


def test_shared_memory_that_the_guest_has_anew_is_no_volume_of_the_hosts(rootfs):
    """Engines bind a tmpfs of theirs to /dev/shm."""
    (rootfs / "dev").mkdir()
    mounts = [("", "/dev", True), ("/dev/shm", "/dev/shm", False)]
    found = enter(rootfs, "/dev", "+/dev/shm", mounts=mounts, guests=["/dev"])
    assert found["refused"] == ["EROFS"]
