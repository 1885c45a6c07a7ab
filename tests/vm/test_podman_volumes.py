"""Files between host and container, seen on both sides at once: volumes, cp, diff, commit, export."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

#: the host's own Python, run in the guest from its own files: busybox knows no extended attributes
LIBRARIES = "/host/lib/x86_64-linux-gnu"
PYTHON = [f"{LIBRARIES}/ld-linux-x86-64.so.2", "--library-path", LIBRARIES, "/host/bin/python3", "-ISc"]
#: a version 2 file capability: cap_net_raw permitted and effective
NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")
SPACES = "ein Ordner, mit \"Zeichen\" ünd 'mehr'"


@pytest.fixture(scope="module")
def files(podman):
    """The host's side: directories `rw`, `ro`, one with a name that needs quoting, and one file."""
    root = podman.directory / "volumes"
    for name in ("rw", "ro", SPACES):
        (root / name).mkdir(parents=True)
        (root / name / "from-host").write_text("host\n")
    (root / "file").write_text("one\n")
    (root / "rw").chmod(0o1777)
    owned = root / "rw" / "owned"
    owned.write_text("owned\n")
    os.chown(owned, 1234, 4321)
    owned.chmod(0o4640)
    (root / "rw" / "link").symlink_to("from-host")
    (root / "rw" / "outside").symlink_to("/etc/passwd")
    (root / "ro" / "deep").mkdir()
    os.setxattr(owned, "user.origin", b"host\0bytes")
    return root


@pytest.fixture(scope="module")
def box(podman, nothing_left, files):
    """A container with all of them, a named volume, a tmpfs over an image directory, and the host's /usr."""
    words = ["--detach", "--name", "box", "--volume", f"{files}/rw:/rw", "--volume", f"{files}/ro:/ro:ro"]
    words += ["--mount", f"type=bind,source={files}/file,target=/etc/one-file"]
    words += [
        "--volume",
        f"{files}/{SPACES}:/{SPACES}",
        "--volume",
        "named:/srv",
        "--tmpfs",
        "/var/tmp:size=4m",
    ]
    words += ["--volume", "/usr:/host:ro", "--env", "PYTHONHOME=/host"]
    podman("run", *words, podman.image, "sleep", "1000000")
    return "box"


def sh(podman, box: str, script: str, *words: object, status: int = 0):
    return podman("exec", *words, box, "sh", "-c", script, status=status)


def test_a_file_of_the_host_is_read_and_one_of_the_container_is_on_the_host_at_once(podman, box, files):
    assert podman("exec", box, "cat", "/rw/from-host").text == "host"
    sh(podman, box, "echo guest > /rw/from-guest")
    assert (files / "rw" / "from-guest").read_text() == "guest\n"
    (files / "rw" / "later").write_text("later\n")
    assert podman("exec", box, "cat", "/rw/later").text == "later"
    podman("exec", box, "rm", "/rw/later")
    assert not (files / "rw" / "later").exists()


def test_what_the_host_changes_in_place_is_read_anew_though_the_size_is_the_same(podman, box, files):
    changing = files / "rw" / "changing"

    def comes_to_read(text: str) -> bool:
        end = time.monotonic() + 30  # what the guest knows of a file it believes for a tenth of a second
        while (seen := podman("exec", box, "cat", "/rw/changing").text) != text:
            assert time.monotonic() < end, seen
        return True

    changing.write_text("old\n")
    assert comes_to_read("old")
    with changing.open("r+") as file:
        file.write("new\n")
    assert comes_to_read("new")
    (files / "rw" / "next").write_text("")
    (files / "rw" / "next").rename(changing)
    assert comes_to_read("")


@pytest.mark.parametrize(
    "script", ["echo > /ro/from-host", "rm /ro/from-host", "echo > /ro/deep/new", "chmod 0 /ro"]
)
def test_a_read_only_volume_cannot_be_changed(podman, box, files, script):
    assert "read-only file system" in sh(podman, box, script, status=1).complaint.lower()
    assert (files / "ro" / "from-host").read_text() == "host\n"


def test_even_root_of_the_guest_cannot_write_a_read_only_volume(podman, box, files):
    """The wall is the host's: a guest that remounts writable is still refused."""
    words = ("--privileged", "--user", "root")
    done = podman.any("exec", *words, box, "sh", "-c", "mount -o remount,bind,rw /ro; echo > /ro/broken")
    assert done.status == 1
    assert not (files / "ro" / "broken").exists()


def test_owners_and_modes_are_the_same_on_both_sides(podman, box, files):
    assert podman("exec", box, "stat", "-c", "%u:%g %a", "/rw/owned").text == "1234:4321 4640"
    sh(podman, box, "echo > /rw/mine && mkfifo /rw/pipe && mkdir -m 2750 /rw/folder", "--user", "77:88")
    mine = (files / "rw" / "mine").stat()
    assert (mine.st_uid, mine.st_gid) == (77, 88)
    assert stat.S_ISFIFO((files / "rw" / "pipe").stat().st_mode)
    assert stat.S_IMODE((files / "rw" / "folder").stat().st_mode) == 0o2750
    sh(podman, box, "chown 5:6 /rw/mine && chmod 6711 /rw/mine")
    mine = (files / "rw" / "mine").stat()
    assert (mine.st_uid, mine.st_gid, stat.S_IMODE(mine.st_mode)) == (5, 6, 0o6711)


def test_a_user_without_rights_is_refused_as_on_the_host(podman, box):
    done = podman("exec", "--user", "77:88", box, "cat", "/rw/owned", status=1)
    assert "permission denied" in done.complaint.lower()


def test_symbolic_links_stay_links_and_lead_into_the_container(podman, box, files):
    assert podman("exec", box, "readlink", "/rw/link").text == "from-host"
    assert "app:x:1234" in podman("exec", box, "cat", "/rw/outside").text
    sh(podman, box, "ln -s /nowhere/at/all /rw/dangling && ln /rw/from-host /rw/hard")
    assert os.readlink(files / "rw" / "dangling") == "/nowhere/at/all"
    assert (files / "rw" / "hard").stat().st_ino == (files / "rw" / "from-host").stat().st_ino


def test_extended_attributes_pass_both_ways(podman, box, files):
    program = (
        "import os; print(os.getxattr('/rw/owned', 'user.origin'));"
        "os.setxattr('/rw/owned', 'user.guest', b'1\\0')"
    )
    assert podman("exec", box, *PYTHON, program).text == repr(b"host\0bytes")
    assert os.getxattr(files / "rw" / "owned", "user.guest") == b"1\0"
    assert set(os.listxattr(files / "rw" / "owned")) >= {"user.origin", "user.guest"}


def test_a_file_capability_of_the_host_works_inside(podman, box, files):
    program = files / "rw" / "busybox"
    program.write_bytes(Path("/bin/busybox").read_bytes())
    program.chmod(0o755)
    os.setxattr(program, "security.capability", NET_RAW)
    done = podman("exec", "--privileged", "--user", "77:88", box, "/rw/busybox", "cat", "/proc/self/status")
    assert "CapPrm:\t0000000000002000" in done.lines


def test_a_volume_with_a_name_full_of_quotes_and_umlauts_is_there(podman, box, files):
    podman("exec", box, "cp", f"/{SPACES}/from-host", f"/{SPACES}/größe \\ 1")
    assert (files / SPACES / "größe \\ 1").read_text() == "host\n"


def test_a_single_file_is_bound_and_written_through(podman, box, files):
    sh(podman, box, "echo two >> /etc/one-file")
    assert (files / "file").read_text() == "one\ntwo\n"
    assert sh(podman, box, "rm /etc/one-file", status=1).complaint  # a mount point


def test_a_named_volume_starts_with_the_files_of_the_image_and_outlives_the_container(podman, box):
    assert podman("exec", box, "cat", "/srv/plain").text == "text"
    sh(podman, box, "echo kept > /srv/kept")
    place = Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", "named").text)
    assert (place / "kept").read_text() == "kept\n"


def test_locks_and_shared_maps_work_on_a_volume(podman, box, files):
    program = (
        "import fcntl, mmap; f = open('/rw/mapped', 'w+b'); f.truncate(4096); fcntl.flock(f, fcntl.LOCK_EX);"
        "fcntl.lockf(f, fcntl.LOCK_EX); m = mmap.mmap(f.fileno(), 4096); m[:6] = b'mapped'; m.flush();"
        "print('done')"
    )
    assert podman("exec", box, *PYTHON, program).text == "done"
    assert (files / "rw" / "mapped").read_bytes()[:6] == b"mapped"


def test_cp_into_and_out_of_the_running_container(podman, box, tmp_path):
    (tmp_path / "in").write_bytes(bytes(range(256)))
    podman("cp", tmp_path / "in", f"{box}:/home/in")
    assert podman("exec", box, "sha256sum", "/home/in").text.split()[0] == (
        "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"
    )
    sh(
        podman,
        box,
        "mkdir -p /home/tree/below && echo 1 > /home/tree/below/file && ln -s file /home/tree/below/link",
    )
    podman("cp", f"{box}:/home/tree", tmp_path / "out")
    assert (tmp_path / "out" / "below" / "file").read_text() == "1\n"
    assert os.readlink(tmp_path / "out" / "below" / "link") == "file"


def test_cp_reaches_volumes_of_the_running_container(podman, box, files, tmp_path):
    (tmp_path / "in").write_text("copied\n")
    podman("cp", tmp_path / "in", f"{box}:/rw/copied")
    assert (files / "rw" / "copied").read_text() == "copied\n"
    podman("cp", f"{box}:/ro/from-host", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "host\n"


def test_diff_and_commit_show_what_changed_in_the_running_container(podman, box):
    sh(podman, box, "echo new > /home/new && rm /etc/group")
    changes = podman("diff", box).lines
    assert {"A /home/new", "D /etc/group"} <= set(changes)
    podman("commit", "--quiet", box, "localhost/committed:1")
    done = podman(
        "run", "--rm", "localhost/committed:1", "sh", "-c", "cat /home/new; test -e /etc/group || echo gone"
    )
    assert done.lines == ["new", "gone"]


def test_export_holds_what_the_container_wrote(podman, box):
    sh(podman, box, "echo exported > /home/exported")
    with tarfile.open(fileobj=io.BytesIO(podman("export", box).out)) as tar:
        member = tar.extractfile("home/exported")
        assert member is not None
        assert member.read() == b"exported\n"
