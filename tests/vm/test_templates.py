"""Templates in the life of sandboxes: made by themselves, never used when damaged, nothing kept or left."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.guestimage import template_store
from bufferzone.model import ImageRef
from bufferzone.record import replace
from bufferzone.storage import virtiofs
from bufferzone.vmm.qemu import driver
from vm.leftovers import Watch, descendants, is_alive, name_of
from vm.test_failures_disk import small_disk
from vm.verbs import BOOT_S, await_end, await_true, bundle, config, kill
from vm.warm import Warm, makers, open_files

pytestmark = pytest.mark.vm

MARK = "bztemplate"


@pytest.fixture
def warm(tmp_path: Path, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path / "warm", guest_image, boot_timeout_s=400)
    yield warm
    warm.runtime.close()
    for pid in makers():
        kill(pid)


@pytest.fixture
def watch(warm: Warm) -> Watch:
    return Watch(warm.runtime.root, mark=MARK)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    linux = {**config("")["linux"], "cgroupsPath": f"/{MARK}-test"}
    return bundle(tmp_path / "bundle", "echo up; exec sleep 1000", linux=linux)


def run_and_delete(warm: Warm, made: Path, id: str) -> tuple[str, list[str]]:
    """Run a container until it speaks; how its VM began, and what was logged about templates."""
    container = warm.runtime.run(id, made)
    container.expect("up")
    found = warm.begun(id), warm.warnings(id)
    warm.runtime.ok("delete", "--force", id)
    return found


def cgroups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def virtual_machine_of(maker: int) -> int:
    """The maker's QEMU, once it runs."""

    def found() -> int:
        return next((pid for pid in descendants(maker) if name_of(pid).startswith("qemu")), 0)

    return int(await_true(found, "the maker's QEMU"))


def overwrite(path: Path, *, sha256: bool = False) -> None:
    """Other bytes of the same number at the same places, as a disk that rots makes them: its meta.json has
    the file's times. `sha256`: its digest, too, as if it had been made so.
    """
    before = path.stat()
    with path.open("r+b") as file:
        at = 0
        while at < before.st_size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            os.pwrite(file.fileno(), b"\xcc" * (end - at), at)
            at = end
        os.fsync(file.fileno())
    meta = path.with_name(template_store.META)
    told = json.loads(meta.read_text())
    told["files"][path.name] = template_store._fingerprint(path.stat())
    if sha256:
        told["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    meta.write_text(json.dumps(told))


def test_the_first_start_is_cold_and_makes_the_template_of_the_second(
    warm: Warm, watch: Watch, made: Path
) -> None:
    container = warm.runtime.create("first", made)
    (maker,) = makers()
    virtual_machine_of(maker)
    bundle_files = [
        path for path in open_files(maker) if path.startswith((str(made), str(warm.runtime.root)))
    ]
    assert bundle_files == []
    assert os.readlink(f"/proc/{maker}/cwd") == "/"
    assert MARK not in cgroups_of(maker)
    assert MARK in cgroups_of(warm.runtime.shim_pid("first"))
    warm.runtime.ok("delete", "--force", "first")
    assert container.wait() == 137
    watch.assert_nothing_left()  # of the container: the maker is looked past
    assert is_alive(maker), "the maker ended with the container"
    assert container.output() == container.errors() == "", "the maker holds the container's output"
    warm.await_template()
    assert run_and_delete(warm, made, "second") == ("warm", [])
    assert makers() == []
    watch.assert_nothing_left()


def test_two_first_starts_at_once_make_one_template(warm: Warm, watch: Watch, made: Path) -> None:
    begun = [warm.runtime.begin_create(id, made) for id in ("one", "two")]
    for verb, container in begun:
        assert verb.wait(BOOT_S) == 0, container.errors()
    assert [warm.begun(id) for id in ("one", "two")] == ["cold", "cold"]
    for id in ("one", "two"):
        warm.runtime.ok("delete", "--force", id)
    key = warm.await_template()
    assert sorted(os.listdir(warm.store)) == sorted([key, f"{key}.lock", "lock", "maker.log"])
    assert (warm.store / "maker.log").read_text() == ""
    watch.assert_nothing_left()


def test_without_the_setting_every_start_is_cold(tmp_path: Path, guest_image: ImageRef, made: Path) -> None:
    warm = Warm(tmp_path / "warm", guest_image, templates=False)
    assert run_and_delete(warm, made, "c") == ("cold", [])
    assert makers() == []
    assert not warm.store.exists()


@pytest.mark.parametrize("how", ["truncated", "open to others", "rotted", "refused by QEMU"])
def test_a_damaged_template_means_a_cold_start_one_warning_and_a_new_template(
    how: str, warm: Warm, template: Path, watch: Watch, made: Path
) -> None:
    warm.take_template(template)
    (key,) = warm.keys()
    before = (warm.store / key).stat().st_ino
    if how == "truncated":
        os.truncate(warm.store / key / template_store.MEMORY, 1 << 20)
    elif how == "open to others":
        (warm.store / key / template_store.STATE).chmod(0o644)
    else:
        overwrite(warm.store / key / template_store.STATE, sha256=how == "refused by QEMU")
    begun, warnings = run_and_delete(warm, made, "c")
    assert begun == "cold"
    assert len(warnings) == 1, warnings
    words = {
        "truncated": "memory was changed after it was written",
        "open to others": "not private to this user",
        "rotted": "state is not what was written",
        "refused by QEMU": "booting cold, the template is of no use",
    }
    assert words[how] in warnings[0]
    if how == "refused by QEMU":  # known too late for this start to begin a maker: the next one does
        assert warm.keys() == []
        assert run_and_delete(warm, made, "next") == ("cold", [])
    assert warm.await_template() == key
    assert (warm.store / key).stat().st_ino != before
    assert run_and_delete(warm, made, "d") == ("warm", [])
    watch.assert_nothing_left()


def test_memory_that_rotted_fails_one_start_and_is_removed(
    warm: Warm, template: Path, watch: Watch, made: Path
) -> None:
    warm.take_template(template)
    overwrite(warm.store / warm.keys()[0] / template_store.MEMORY)
    warm.set(boot_timeout_s=10)  # a guest that will never answer
    failed = warm.runtime.try_create("c", made)
    warm.set(boot_timeout_s=120)
    assert failed.status == 1
    assert "the virtual machine" in failed.line
    assert warm.keys() == []
    assert run_and_delete(warm, made, "d")[0] == "cold"
    warm.await_template()
    watch.assert_nothing_left()


def test_a_maker_killed_in_the_middle_leaves_a_directory_that_prune_removes(
    warm: Warm, watch: Watch, made: Path
) -> None:
    assert run_and_delete(warm, made, "c")[0] == "cold"
    (maker,) = makers()
    vmm = virtual_machine_of(maker)
    kill(maker)
    await_end(vmm)
    watch.assert_nothing_left()
    assert warm.keys() == []
    assert [name for name in os.listdir(warm.store) if name.startswith("tmp-")]
    assert warm.bz("template", "prune").status == 0
    assert sorted(os.listdir(warm.store)) == ["lock", "maker.log"]


def test_bz_template_shows_makes_and_removes(warm: Warm, watch: Watch) -> None:
    assert warm.bz("template", "ls").out.splitlines()[1:] == []
    made = warm.bz("template", "make", "--vcpus", "2", "--memory", "256")
    assert made.status == 0, made.err
    assert "made template" in made.out
    assert "is there" in warm.bz("template", "make", "--vcpus=2", "--memory=256").out
    (row,) = warm.bz("template", "ls").out.splitlines()[1:]
    (key,) = warm.keys()
    assert row.startswith(key[:12])
    assert "256 MiB" in row
    (facts,) = json.loads(warm.bz("template", "ls", "--json").out)
    assert (facts["key"], facts["memory_mib"], facts["vcpus"]) == (key, 256, 2)
    assert warm.bz("template", "make", "--json").line.startswith("bz: bz template make has no --json")
    assert warm.bz("template", "rm", "zz").line == "bz: no such template: 'zz'"
    assert warm.bz("template", "rm", key[:12]).status == 0
    assert warm.keys() == []
    assert "must be 128 to" in warm.bz("template", "make", "--memory", "3").line
    assert "must be 1 to" in warm.bz("template", "make", "--vcpus", "0").line
    wanted = "bz: bz template ls has no --all (hint: bz template prune has)"
    assert warm.bz("template", "ls", "--all").line == wanted
    watch.assert_nothing_left()


def version_of(program: str) -> tuple[int, int]:
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def test_a_template_has_the_share_in_it_where_qemu_and_virtiofsd_can_save_one(
    warm: Warm, watch: Watch, tmp_path: Path
) -> None:
    daemon = virtiofs.find_program()
    if daemon.kind == "c":
        pytest.skip("the C virtiofsd of QEMU 7.2 cannot hand its state over")
    if version_of(driver.find_program()) < (8, 2) or version_of(daemon.path) < (1, 11):
        pytest.skip("saving a share takes QEMU 8.2 and virtiofsd 1.11")
    warm.make_template()
    assert template_store.listing(str(warm.store))[0][template_store.SHARE] is True
    made = bundle(tmp_path / "bundle", "read word < /etc/word; echo $word > /out; echo up; exec sleep 1000")
    (made / "rootfs" / "etc").mkdir(exist_ok=True)
    (made / "rootfs" / "etc" / "word").write_text("from the host\n")
    for id in ("one", "two"):
        assert run_and_delete(warm, made, id) == ("warm", [])
        written = made / "rootfs" / "out"
        assert written.read_text() == "from the host\n"
        assert written.stat().st_uid == 0
        written.unlink()
    watch.assert_nothing_left()


def test_a_template_that_cannot_be_made_is_one_line(tmp_path: Path, guest_image: ImageRef) -> None:
    warm = Warm(tmp_path / "warm", guest_image, kernel="/nonexistent/kernel")
    failed = warm.bz("template", "make")
    assert failed.status == 1
    assert failed.line.startswith("bz: cannot make a template: ")
    assert "Traceback" not in failed.err


@pytest.mark.parametrize("pages", [2, 2000])
def test_a_template_that_finds_no_room_is_one_line_and_leaves_nothing(pages: int, warm: Warm) -> None:
    with small_disk(warm.store, size=pages * 4096, nr_inodes=100) as store:
        failed = warm.bz("template", "make")
        assert failed.status == 1
        assert failed.line.startswith("bz: cannot make a template: ")
        assert "No space left on device" in failed.line
        left = {path.name for path in store.iterdir() if not path.name.endswith("lock")}
        assert left <= {"maker.log"}


def test_of_an_image_that_rotted_no_template_is_made(tmp_path: Path, guest_image: ImageRef) -> None:
    copy = tmp_path / "images" / guest_image.digest
    shutil.copytree(guest_image.directory, copy)
    with (copy / "initrd").open("r+b") as file:  # of the same size
        file.seek(-100, os.SEEK_END)
        file.write(bytes([file.read(1)[0] ^ 1]))
    warm = Warm(tmp_path / "warm", replace(guest_image, directory=str(copy)))
    failed = warm.bz("template", "make")
    assert failed.status == 1
    assert f"the guest image is damaged: {copy}/initrd (hint: run: bz setup)" in failed.line
    assert warm.keys() == []


def test_a_store_that_cannot_be_written_does_not_stop_a_start(warm: Warm, made: Path) -> None:
    warm.store.write_text("a file where the store should be")
    begun, warnings = run_and_delete(warm, made, "c")
    assert begun == "cold"
    assert len(warnings) == 1
    assert "no template will be made" in warnings[0]
