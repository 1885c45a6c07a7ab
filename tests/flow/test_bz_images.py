"""Images with bz: fetched by skopeo, run, listed, removed; what the image asks for; what goes wrong."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from fakes import oci_layout
from flow.cli import SETTINGS, Cli, needs_host

pytestmark = [needs_host, pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")]

ASKS = {"Cmd": ["cat", "/etc/layer"], "Env": ["A=image", "B=image"], "User": "app", "WorkingDir": "/srv"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return oci_layout.usual(tmp_path_factory.mktemp("layout"), **ASKS, StopSignal="SIGUSR1")


@pytest.fixture
def bz(tmp_path, store):
    cli = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{store}/images"')
    yield cli
    cli.close()


def run(bz, *words, **more):
    return bz.bz("run", "--network", "none", *words, **more)


def test_an_image_is_fetched_once_and_its_command_runs(bz, store, image):
    first = run(bz, image)
    assert first.stdout == "top\n"
    assert first.stderr.startswith("bz: pulling oci:")
    again = run(bz, image, "sh", "-c", "echo $A $(id -u):$(id -g) $(pwd); test -e /etc/gone || echo gone")
    assert (again.stdout, again.stderr) == ("image 1000:1001 /srv\ngone\n", "")
    assert bz.left() == []
    assert os.listdir(store / "sandboxes") == []


def test_what_the_person_says_comes_before_what_the_image_asks_for(bz, image):
    flags = ("-e", "A=mine", "-u", "0", "-w", "/tmp", "--hostname", "box")
    done = run(bz, *flags, image, "sh", "-c", "echo $A $B $(id -u) $(pwd) $(cat /etc/hostname)")
    assert done.stdout == "mine image 0 /tmp box\n"
    assert run(bz, "--entrypoint", "echo", image, "-n", "x").stdout == "x"


def test_what_is_written_is_seen_by_no_other_container(bz, image):
    script = "echo mine >/etc/layer; rm /etc/passwd; cat /etc/layer; ls /etc"
    assert run(bz, "-u", "0", image, "sh", "-c", script).stdout.startswith("mine\n")
    assert run(bz, image).stdout == "top\n"
    assert "Read-only" in run(bz, "-u", "0", "--read-only", image, "touch", "/x", check=1).stderr


def test_an_entry_point_gets_the_command_or_the_images(bz, tmp_path):
    image = oci_layout.usual(tmp_path / "layout", Entrypoint=["echo", "-n"], Cmd=["usual"])
    assert run(bz, image).stdout == "usual"
    assert run(bz, image, "other").stdout == "other"


def test_a_directory_is_a_root_file_system_and_stays_as_it_is(bz, tmp_path):
    root = tmp_path / "root"
    for name in ("bin", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy(oci_layout.BUSYBOX, root / "bin/busybox")
    assert run(bz, str(root), "/bin/busybox", "touch", "/new").stdout == ""
    assert not (root / "new").exists()
    assert "no command is given" in run(bz, str(root), check=125).stderr


def test_images_are_listed_described_and_removed(bz, tmp_path):
    image = oci_layout.usual(tmp_path / "other", Cmd=["true"], Labels={"who": "me"})
    id = bz.bz("pull", image).stdout.strip()
    (found,) = [row for row in json.loads(bz.bz("images", "--json").stdout) if row["id"] == id]
    assert len(found["layers"]) == 2
    name = found["names"][0]
    assert name.startswith("localhost/oci/other-latest:")
    assert name in bz.bz("images").stdout
    (described,) = json.loads(bz.bz("image", "inspect", id[:12]).stdout)
    assert described["config"]["config"]["Labels"] == {"who": "me"}
    run(bz, "--name", "user", id[:12])
    assert json.loads(bz.bz("image", "df", "--json").stdout)["in_use"] == 1
    assert "the image is in use by a container" in bz.bz("image", "rm", name, check=1).stderr
    bz.bz("rm", "user")
    assert bz.bz("image", "rm", name).stdout == f"{name}\n"
    assert id not in bz.bz("images", "-q").stdout
    assert "no such image" in bz.bz("image", "rm", name, check=1).stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("oci:/no/such", "true"), "no such image: oci:/no/such"),
        (("Upper", "true"), "not the name of an image: Upper"),
        (("./no-such-dir", "true"), "no such directory"),
        (("--pull", "never", "no/such:image"), "no such image here"),
        (("--pull", "often", "x"), "pull: expected missing, always or never, got often"),
        (("-q", "127.0.0.1:1/x", "true"), "nobody answers at the registry's address"),
    ],
)
def test_what_is_no_image_is_one_line_and_125(bz, words, says):
    done = run(bz, *words, check=125)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert bz.left() == []


def test_a_layer_that_is_not_what_its_digest_says_is_refused(bz, tmp_path):
    layer = oci_layout.layer({"unique": os.urandom(1 << 16)})  # one that is not in the store
    image = oci_layout.write(tmp_path / "bad", [layer], {})
    blobs = sorted((tmp_path / "bad/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(oci_layout.gzip.decompress(blobs[-1].read_bytes()))
    data[1 << 15] ^= 1
    blobs[-1].write_bytes(oci_layout.gzip.compress(bytes(data), 1, mtime=0))
    before = bz.bz("images", "-q").stdout
    done = bz.bz("pull", "-q", image, check=1)
    assert "what came is not what its digest says" in done.stderr
    assert bz.bz("images", "-q").stdout == before


def test_a_detached_container_is_asked_joined_and_stopped(bz, image):
    script = "trap 'echo usr1; exit 3' USR1; echo up; echo err >&2; while :; do sleep 0.05; done"
    id = run(bz, "-d", image, "sh", "-c", script).stdout.strip()
    assert bz.bz(
        "exec", "-u", "app", "-e", "X=1", id[:6], "sh", "-c", "echo $X $A $(id -u) $HOME"
    ).stdout == ("1 image 1000 /srv\n")
    assert bz.bz("exec", "-i", id, "cat", input="text").stdout == "text"
    bz.bz("exec", id, "no-such-program", check=127)
    (found,) = json.loads(bz.bz("inspect", id).stdout)
    assert found["status"] == "running"
    assert found["annotations"]["org.opencontainers.image.stopSignal"] == "SIGUSR1"
    assert bz.bz("pause", id).stdout == f"{id}\n"
    assert bz.state(id)["status"] == "paused"
    bz.bz("unpause", id)
    waiting = bz.start_bz("wait", id)
    following = bz.start_bz("logs", "-f", id)
    assert bz.bz("stop", id).stdout == f"{id}\n"
    assert waiting.communicate(timeout=60)[0] == "3\n"
    assert following.communicate(timeout=60) == ("up\nusr1\n", "err\n")
    assert bz.bz("logs", id).stdout == "up\nusr1\n"
    bz.bz("rm", id)


def test_what_ignores_the_signal_is_killed(bz, image):
    script = "trap '' USR1; while :; do sleep 0.05; done"
    id = run(bz, "-d", image, "sh", "-c", script).stdout.strip()
    bz.bz("stop", "-t", "0", id)
    assert bz.state(id)["status"] == "stopped"
    bz.bz("rm", id)


def test_an_image_on_a_disk_is_packed_once(bz, store, image):
    script = "echo mine >/tmp/x; cat /etc/layer /tmp/x /etc/hostname; test -e /etc/gone || echo gone"
    first = run(bz, "--disk", "-u", "0", "--hostname", "one", image, "sh", "-c", script)
    assert first.stdout == "top\nmine\none\ngone\n"
    disks = os.listdir(store / "disks")
    assert [name.endswith(".erofs") for name in disks] == [True]
    made = os.stat(store / "disks" / disks[0]).st_ino
    assert run(bz, "--disk", image).stdout == "top\n"
    assert os.stat(store / "disks" / disks[0]).st_ino == made
    assert os.listdir(store / "sandboxes") == []


def test_what_was_saved_at_a_terminal_goes_on_as_often_as_wanted(bz, store, image):
    run(bz, "-d", "--disk", "-u", "0", "--name", "box", image, "sleep", "1000")
    bz.bz("exec", "box", "sh", "-c", "echo ready >/tmp/ready")
    assert bz.bz("snapshot", "--reseed-file", "/tmp/seed", "box", "ready").stdout == "ready\n"
    refused = bz.bz("snapshot", "box", "ready", check=None)
    assert refused.stderr == "bz: a snapshot with that name exists: ready (hint: bz snapshots rm ready)\n"
    bz.bz("snapshot", "--replace", "--reseed-file", "/tmp/seed", "box", "ready")
    bz.bz("rm", "-f", "box")
    for name in ("one", "two"):
        assert bz.bz("restore", "--name", name, "ready").stdout == f"{name}\n"
        told = bz.bz("exec", name, "sh", "-c", "cat /tmp/ready; id -u; wc -c </tmp/seed").stdout
        assert told == "ready\n0\n64\n"
    assert bz.bz("exec", "-u", "app", "one", "id", "-g").stdout == "1001\n"
    assert bz.bz("snapshots", "-q").stdout == "ready\n"
    assert bz.bz("snapshots", "rm", "ready").stdout == "ready\n"
    bz.bz("rm", "-f", "one", "two")
    assert bz.left() == []
    assert os.listdir(store / "sandboxes") == os.listdir(store / "snapshots") == []


def test_what_cannot_be_saved_is_one_line_with_what_to_do(bz, store, image):
    run(bz, "-d", "--name", "box", image, "sleep", "1000")
    refused = bz.bz("snapshot", "box", "ready", check=None)
    assert refused.returncode == 1
    assert "shared with this host" in refused.stderr
    assert "bz run --disk" in refused.stderr
    assert bz.bz("snapshots", "--json").stdout == "[]\n"
    refused = bz.bz("run", "--disk", "--", "true", check=125)
    assert refused.stderr.startswith("bz: --disk: the host's own programs are not packed")
    bz.bz("rm", "-f", "box")


def test_a_disk_that_cannot_be_packed_leaves_nothing(bz, store, image, tmp_path):
    run(bz, image)
    for name in os.listdir(store / "disks"):
        os.unlink(store / "disks" / name)
    bz.host("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(store / "disks"))
    try:
        failed = run(bz, "--disk", image, check=125)
    finally:
        bz.host("umount", str(store / "disks"))
    assert failed.stderr.startswith("bz: cannot make a disk of the image: ")
    assert failed.stderr.count("\n") == 1
    assert os.listdir(store / "sandboxes") == os.listdir(store / "disks") == []
