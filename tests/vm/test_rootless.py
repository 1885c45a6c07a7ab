"""Rootless Podman as an ordinary user of the machine: run, exec, stop, and root of the machine nowhere."""

from __future__ import annotations

import json
import os

import pytest

from bufferzone.storage import virtiofs
from vm import pages
from vm.conftest import _image
from vm.rootless import RootlessPodman, descendants, missing, name_of, uids_of, until
from vm.warm import MAKE_S

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "all there")


@pytest.fixture(scope="module")
def podman(user):
    podman = RootlessPodman(user)
    podman.image, file = _image(user.directory)
    file.chmod(0o644)
    podman("load", "--input", file)
    yield podman
    podman.any("rm", "--all", "--force", "--time", "0", timeout_s=120)


def started(podman, *words):
    """A container in the background that ends with 7 when asked to; its name."""
    script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done"
    podman("run", "--detach", "--network", "none", *words, podman.image, "sh", "-c", script)


def test_a_container_runs_in_a_kernel_of_its_own_and_gives_its_status(podman):
    done = podman("run", "--rm", "--network", "none", podman.image, "sh", "-c", "uname -r; exit 5", status=5)
    assert done.text
    assert done.text != os.uname().release


def test_exec_logs_and_stop_of_a_container_in_the_background(podman):
    started(podman, "--name", "worker")
    assert podman("exec", "worker", "sh", "-c", "id -u; exit 3", status=3).text == "0"
    assert podman("logs", "worker").text == "up"
    podman("stop", "--time", "10", "worker")
    state = json.loads(podman("container", "inspect", "worker").out)[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 7)
    podman("rm", "worker")


def test_no_process_of_it_is_root_of_the_machine_and_helpers_have_ids_of_their_own(podman, user):
    started(podman, "--name", "seen")
    conmon = json.loads(podman("container", "inspect", "seen").out)[0]["State"]["ConmonPid"]
    rows = {pid: (name_of(pid), uids_of(pid)) for pid in descendants(conmon)}
    names = " ".join(name for name, _ in rows.values())
    assert all(part in names for part in ("conmon", "bufferzone-shim", "qemu", "virtiofsd")), rows
    assert len(rows) >= 5, rows  # and the waiter
    for pid, (name, uids) in rows.items():
        assert uids <= user.own_ids(), (pid, name, uids)
    alone = [uids for name, uids in rows.values() if name.startswith(("qemu", "virtiofsd"))]
    assert len(alone) == 2
    assert alone[0] != alone[1]
    others = [uids for uids in alone if uids != {user.uid}]
    # the Rust virtiofsd is root of its user namespace, which is the user
    assert len(others) == (2 if virtiofs.find_program().kind == "c" else 1)
    podman("rm", "--force", "--time", "0", "seen")


def test_a_volume_has_the_users_files_both_ways(podman, user):
    folder = user.home / "data"
    folder.mkdir()
    os.chown(folder, user.uid, user.gid)
    (folder / "in").write_text("from the host\n")
    os.chown(folder / "in", user.uid, user.gid)
    script = "cat /data/in; echo from the guest >/data/out; touch /data/other; chown 1234:1235 /data/other"
    run = ("run", "--rm", "--network", "none", "--volume", f"{folder}:/data", podman.image)
    assert podman(*run, "sh", "-c", script).text == "from the host"
    assert (folder / "out").read_text() == "from the guest\n"
    assert (folder / "out").stat().st_uid == user.uid
    assert (folder / "other").stat().st_uid in user.own_ids() - {user.uid}


def test_a_read_only_volume_stays_as_it_is(podman, user):
    folder = user.home / "fixed"
    folder.mkdir()
    os.chown(folder, user.uid, user.gid)
    run = ("run", "--rm", "--network", "none", "--volume", f"{folder}:/data:ro", podman.image)
    assert podman(*run, "touch", "/data/x", status=1).complaint.endswith("Read-only file system")
    assert list(folder.iterdir()) == []


def test_below_the_hosts_root_the_kernels_own_is_the_guests(podman):
    script = "cat /host/proc/sys/kernel/hostname; ls /host/sys/class/net; head -c 2 /host/dev/zero | wc -c"
    words = ("--hostname", "inside", "--network", "none", "-v", "/:/host:ro,rslave", podman.image)
    assert podman("run", "--rm", *words, "sh", "-c", script).lines == ["inside", "lo", "2"]


def test_a_file_is_copied_out_of_a_running_container(podman, user):
    started(podman, "--name", "source")
    podman("cp", "source:/srv/plain", user.home / "copy")
    assert (user.home / "copy").read_text() == "text\n"
    podman("rm", "--force", "--time", "0", "source")


def test_state_is_below_the_runtime_directory_and_goes_with_the_container(podman, user):
    started(podman, "--name", "kept")
    identity = json.loads(podman("container", "inspect", "kept").out)[0]["Id"]
    assert (user.state / identity).stat().st_uid == user.uid
    assert (user.state / identity).stat().st_mode & 0o777 == 0o700
    podman("rm", "--force", "--time", "0", "kept")
    assert [path.name for path in user.state.iterdir()] == ["kvm-probe.json"]


def test_the_second_start_of_a_shape_is_warm(podman, user):
    run = ("run", "--detach", "--network", "none", "--annotation", "bufferzone.memory=384", podman.image)
    templates = user.home / ".local/share/bufferzone/templates"

    def sizes():  # the default's, which the containers before needed, may be made only now
        return {json.loads(path.read_text())["facts"]["memory_mib"] for path in templates.glob("*/meta.json")}

    assert 384 not in sizes()
    identity = podman(*run, "sleep", "1000").text
    until(lambda: 384 in sizes(), "a template", MAKE_S)
    second = podman(*run, "sleep", "1000").text
    ran = {name: user.run(user.programs / "bufferzone", "state", name).text for name in (identity, second)}
    assert [json.loads(ran[n])["annotations"]["bufferzone.start"] for n in ran] == ["cold", "warm"]
    podman("rm", "--force", "--time", "0", identity, second)


class OnOverlay(RootlessPodman):
    """With layers, wherever the user's own storage has none."""

    @property
    def options(self):
        return [*super().options, "--storage-driver", "overlay", "--root", self.user.home / "layers"]


def test_an_image_is_packed_once_for_an_ordinary_user_too(podman, user):
    file, podman = next(user.directory.glob("*.tar")), OnOverlay(user)
    podman.image = podman("load", "--quiet", "--input", file).text.split()[-1]
    run = ("run", "--rm", "--network", "none", "--annotation", "bufferzone.rootfs=block", podman.image)
    roots = user.home / ".local/share/bufferzone/roots"
    kept = []
    for _ in range(2):
        assert podman(*run, "sh", "-c", "cat /srv/plain; echo mine > /srv/plain").text == "text"
        kept.append([(path.name, path.stat().st_ino) for path in roots.glob("*.erofs")])
    assert len(kept[0]) == 1
    assert kept[1] == kept[0]
    assert roots.stat().st_uid == user.uid
    podman("rmi", podman.image)


def test_starts_of_a_user_are_counted_where_the_user_reads_them(podman, user):
    def starts():
        done = user.run(user.programs / "bz", "metrics")
        assert done.status == 0, done
        counts = [
            line.split() for line in done.text.splitlines() if line.startswith("bufferzone_starts_total")
        ]
        return sum(int(number) for _, number in counts)

    before = starts()
    podman("run", "--rm", "--network", "none", podman.image, "true")
    until(lambda: starts() == before + 1, "the count of a start")


@pytest.fixture
def environment(podman, user):
    """What a block of the pages finds: `podman` as the others call it here, and an image named busybox."""
    program = user.programs / "podman"
    pages.write_podman(program, [str(word) for word in podman.options], [])
    podman("tag", podman.image, "localhost/busybox")
    known = podman.environment()
    yield {**known, "PATH": f"{user.programs}:{known['PATH']}"}
    program.unlink()


@pytest.mark.parametrize("block", pages.params("sh", "user"))
def test_a_block_of_the_pages_runs_as_an_ordinary_user(user, environment, block):
    place = user.home / block.name.rpartition(":")[2]
    place.mkdir()
    os.chown(place, user.uid, user.gid)
    printed = pages.run(block, user.argv(*pages.shell(block.text)), environment, place)
    assert block.printed in (None, printed)


def test_nothing_is_left_once_the_containers_are_gone(podman, user):
    podman("run", "--rm", "--network", "none", podman.image, "true")

    def ours():  # podman's own pause process stays, as long as its user namespace is to
        names = {pid: name_of(pid) for pid in user.processes()}
        return {pid: name for pid, name in names.items() if not name.startswith(("catatonit", "podman"))}

    until(lambda: not ours(), f"the end of {ours()}")
    assert [path.name for path in user.state.iterdir()] == ["kvm-probe.json"]
