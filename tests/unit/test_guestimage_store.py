"""The store: images made here of a few bytes, found, verified, damaged, replaced, pruned."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.guestimage import __main__ as command
from bufferzone.guestimage import store
from bufferzone.model import ImageRef

ARGUMENTS = ("quiet", "panic=-1")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(root: Path, initrd: bytes = b"initrd") -> ImageRef:
    """Publish a small but complete image and make it the current one."""
    files = {"vmlinux": b"kernel", "initrd": initrd}
    with store.lock(str(root), lambda: None), store.workshop(str(root)) as workshop:
        target = Path(workshop) / "image"
        target.mkdir()
        for name, data in files.items():
            (target / name).write_bytes(data)
        facts = {name: {"sha256": sha(data), "size": len(data)} for name, data in files.items()}
        (target / "manifest.json").write_text(json.dumps({"files": facts, "arguments": list(ARGUMENTS)}))
        digest = store.digest_of(sha(b"kernel"), sha(initrd), ARGUMENTS)
        image = store.publish(str(root), str(target), digest, workshop)
        store.write_index(str(root), {"current": digest})
    return image


def test_the_current_image_is_found_with_its_arguments(tmp_path: Path) -> None:
    made = put(tmp_path)
    found = store.open_image(str(tmp_path))
    assert found == made
    assert Path(found.kernel).read_bytes() == b"kernel"
    assert Path(found.initrd).read_bytes() == b"initrd"
    assert found.arguments == ARGUMENTS
    store.verify(found)


def test_an_image_can_be_opened_by_its_digest(tmp_path: Path) -> None:
    old, new = put(tmp_path, b"old"), put(tmp_path, b"newer")
    assert store.open_image(str(tmp_path), old.digest) == old
    assert store.open_image(str(tmp_path)) == new


@pytest.mark.parametrize("digest", [None, "0" * 64, "../../etc", ""])
def test_a_missing_image_names_the_store_and_what_to_do(tmp_path: Path, digest: str | None) -> None:
    with pytest.raises(HostError, match=str(tmp_path)) as caught:
        store.open_image(str(tmp_path / "none"), digest)
    assert caught.value.code == "image-missing"
    assert caught.value.hint == "run: bz setup"


@pytest.mark.parametrize("name", ["vmlinux", "initrd", "manifest.json"])
def test_a_truncated_or_missing_file_is_found_without_reading_it(tmp_path: Path, name: str) -> None:
    path = Path(put(tmp_path).directory) / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(HostError, match=name) as caught:
        store.open_image(str(tmp_path))
    assert caught.value.code == "image-damaged"
    path.unlink()
    with pytest.raises(HostError, match=name):
        store.open_image(str(tmp_path))


def test_a_flipped_byte_is_found_by_verify(tmp_path: Path) -> None:
    image = put(tmp_path)
    Path(image.initrd).write_bytes(b"initrD")
    assert store.open_image(str(tmp_path)) == image
    with pytest.raises(HostError, match="initrd") as caught:
        store.verify(image)
    assert caught.value.code == "image-damaged"


def test_changed_arguments_are_found_by_verify(tmp_path: Path) -> None:
    image = put(tmp_path)
    manifest = Path(image.directory) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("quiet", "debug"))
    with pytest.raises(HostError, match="damaged"):
        store.verify(store.open_image(str(tmp_path)))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": 1}', '{"files": {"vmlinux": {}, "initrd": {}}, "arguments": []}', "null"],
)
def test_a_manifest_of_nonsense_is_a_damaged_image(tmp_path: Path, text: str) -> None:
    (Path(put(tmp_path).directory) / "manifest.json").write_text(text)
    with pytest.raises(HostError) as caught:
        store.open_image(str(tmp_path))
    assert caught.value.code == "image-damaged"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"current": 5}', '{"current": "../x"}'])
def test_an_index_of_nonsense_is_a_missing_image(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(HostError) as caught:
        store.open_image(str(tmp_path))
    assert caught.value.code == "image-missing"


def test_the_digest_follows_kernel_initrd_and_arguments() -> None:
    digests = {
        store.digest_of("a", "b", ("c",)),
        store.digest_of("x", "b", ("c",)),
        store.digest_of("a", "x", ("c",)),
        store.digest_of("a", "b", ("x",)),
        store.digest_of("a", "b", ("c", "c")),
    }
    assert len(digests) == 5


def test_publishing_over_a_damaged_image_repairs_it(tmp_path: Path) -> None:
    image = put(tmp_path)
    Path(image.kernel).write_bytes(b"")
    assert put(tmp_path) == image
    store.verify(image)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["cache", "index.json", "lock", image.digest])


def test_files_are_readable_for_a_vmm_of_another_uid(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        image = put(tmp_path)
    finally:
        os.umask(before)
    assert os.stat(image.directory).st_mode & 0o777 == 0o755
    assert os.stat(image.kernel).st_mode & 0o777 == 0o644
    assert os.stat(tmp_path / "index.json").st_mode & 0o777 == 0o644


def test_leftovers_of_a_killed_builder_are_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp-dead").mkdir()
    (tmp_path / "tmp-dead" / "vmlinux").write_bytes(b"half")
    put(tmp_path)
    assert not (tmp_path / "tmp-dead").exists()


def test_a_second_builder_is_told_that_it_waits(tmp_path: Path) -> None:
    class Waited(Exception):
        pass

    def waiting() -> None:
        raise Waited

    with (
        store.lock(str(tmp_path), waiting),
        pytest.raises(Waited),
        store.lock(str(tmp_path), waiting),
    ):
        pass
    with store.lock(str(tmp_path), waiting):
        pass  # both are released


def test_old_images_are_pruned_but_never_the_current_ones(tmp_path: Path) -> None:
    images = [put(tmp_path, b"%d" % number) for number in range(store.KEEP + 3)]
    for age, image in enumerate(images):
        os.utime(image.directory, (age, age))
    index = {"current": images[0].digest, "recipes": {"lean": {"digest": images[1].digest}}}
    store.prune(str(tmp_path), index)
    left = [image for image in images if os.path.isdir(image.directory)]
    assert left == [*images[:2], *images[-store.KEEP :]]


def test_a_store_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "x")
    with pytest.raises(HostError, match="Not a directory") as caught, store.lock(below, print):
        pass
    assert caught.value.code == "image-store"


def test_users_keep_images_in_their_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert store.default_store() == "/home/anna/.local/share/bufferzone/images"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert store.default_store() == "/data/bufferzone/images"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert store.default_store() == "/var/lib/bufferzone/images"


def test_the_command_verifies_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = put(tmp_path)
    assert command.main(["--store", str(tmp_path), "verify"]) == 0
    assert capsys.readouterr().out == f"{image.directory}\n"
    Path(image.kernel).write_bytes(b"")
    assert command.main(["--store", str(tmp_path), "verify"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: the guest image is damaged: {image.kernel} (hint: run: bz setup)\n"
