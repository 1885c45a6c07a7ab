"""Which image belongs to the running package: decided by our files' times, built only when they changed."""

import os

import pytest

from bufferzone.errors import HostError
from bufferzone.guestimage import build, current, store
from bufferzone.model import ImageRef

DIGESTS = ["a" * 64, "b" * 64]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A store whose images are only names, and the list of builds."""
    builds = []

    def open_image(directory, digest=None):
        wanted = digest or store.read_index(directory).get("current")
        if wanted is None:
            raise HostError("no guest image", code="image-missing")
        return ImageRef(digest=wanted, directory="", kernel="", initrd="")

    def ensure_image(directory, guest, progress):
        builds.append(guest)
        return open_image(directory, DIGESTS[len(builds) % 2])

    monkeypatch.setattr(store, "open_image", open_image)
    monkeypatch.setattr(build, "ensure_image", ensure_image)
    return str(tmp_path), builds


def test_no_image_at_all_is_for_setup_to_build(made):
    directory, builds = made
    with pytest.raises(HostError, match="no guest image"):
        current.current_image(directory, print)
    assert builds == []


def test_the_builder_is_asked_once_per_version_of_our_files(made, monkeypatch):
    directory, builds = made
    store.write_index(directory, {"current": DIGESTS[0]})
    first = current.current_image(directory, print)
    assert current.current_image(directory, print) == first
    assert len(builds) == 1
    monkeypatch.setattr(current, "fingerprint", lambda package: "another version")
    second = current.current_image(directory, print)
    assert len(builds) == 2
    assert second != first
    monkeypatch.undo()


def test_a_start_does_not_wait_for_a_build_of_somebody_elses(made):
    directory, _ = made
    store.write_index(directory, {"current": DIGESTS[0]})
    with store.lock(directory, lambda: None):  # for minutes, where it compiles a kernel
        first = current.current_image(directory, print)
        assert store.packages_of(store.read_index(directory)) == []
    assert current.current_image(directory, print) != first  # asked once more, and noted now
    assert (
        len(store.packages_of(store.read_index(directory))) == 2
    )  # for the stock guest, and where any will do


def test_two_versions_keep_their_own_image(made, monkeypatch):
    directory, builds = made
    store.write_index(directory, {"current": DIGESTS[0]})
    seen = {}
    for mark in ("one", "two", "one", "two"):
        monkeypatch.setattr(current, "fingerprint", lambda package, mark=mark: mark)
        image = current.current_image(directory, print)
        assert seen.setdefault(mark, image) == image
    assert len(builds) == 2


def test_a_touched_source_file_changes_the_fingerprint(tmp_path):
    for part in ("container", "guest", "guestimage", "linux", "wire"):
        (tmp_path / part).mkdir()
    source = tmp_path / "guest" / "agent.py"
    source.write_text("x = 1\n")
    before = current.fingerprint(str(tmp_path))
    assert current.fingerprint(str(tmp_path)) == before
    os.utime(source, ns=(1, 1))
    assert current.fingerprint(str(tmp_path)) != before


def test_what_is_remembered_is_bounded(made, monkeypatch):
    directory, _ = made
    store.write_index(directory, {"current": DIGESTS[0]})
    for number in range(20):
        current.remember(directory, [f"mark{number}"], DIGESTS[0])
    marks = [mark for mark, _ in store.packages_of(store.read_index(directory))]
    assert marks == [f"mark{number}" for number in range(4, 20)]


def test_each_guest_has_an_image_of_its_own(made, monkeypatch):
    directory, builds = made
    store.write_index(directory, {"current": DIGESTS[0]})
    monkeypatch.setattr(build, "is_ready", lambda directory, guest: True)
    stock, lean = (current.current_image(directory, print, guest) for guest in ("stock", "lean"))
    assert stock != lean
    assert [current.current_image(directory, print, guest) for guest in ("stock", "lean")] == [stock, lean]
    assert builds == ["stock", "lean"]


def test_a_start_compiles_no_kernel_and_says_what_does(made):
    directory, builds = made
    store.write_index(directory, {"current": DIGESTS[0]})
    with pytest.raises(HostError, match="no lean guest in") as caught:
        current.current_image(directory, print, "lean")
    assert caught.value.hint == "run: bz setup --guest lean"
    assert builds == []


def test_where_the_lean_guest_has_been_built_it_is_the_one_that_is_used(made, monkeypatch):
    directory, builds = made
    store.write_index(directory, {"current": DIGESTS[0]})
    monkeypatch.setattr(build, "is_ready", lambda directory, guest: True)  # a package has brought its kernel
    stock = current.current_image(directory, print)
    assert builds == ["stock"]
    current.remember_own(directory, "c" * 64, "lean")  # bz setup --guest lean
    assert current.current_image(directory, print).digest == "c" * 64
    assert current.current_image(directory, print, "stock") == stock
    monkeypatch.setattr(current, "fingerprint", lambda package: "another version")
    index = store.read_index(directory)
    store.write_index(directory, {**index, "recipes": {"lean": {"digest": "c" * 64}}})
    current.current_image(directory, print)
    assert builds == ["stock", "lean"]


def test_a_start_that_asked_for_the_stock_guest_does_not_hide_the_lean_one(made, monkeypatch):
    directory, builds = made
    store.write_index(directory, {"current": DIGESTS[0], "recipes": {"lean": {"digest": DIGESTS[0]}}})
    monkeypatch.setattr(build, "is_ready", lambda directory, guest: True)
    current.current_image(directory, print, "stock")
    current.remember_own(directory, DIGESTS[0])  # bz setup --guest stock
    for _ in range(2):
        current.current_image(directory, print)
    assert builds == ["stock", "lean"]


def test_roots_own_store_is_read_once_for_both_guests(made, monkeypatch):
    directory, _ = made
    store.write_index(directory, {"current": DIGESTS[0]})
    current.remember_own(directory, DIGESTS[0])
    monkeypatch.setattr(store, "SYSTEM_STORE", directory)
    monkeypatch.setattr(store, "default_store", lambda: directory)
    read, times = store.read_index, []
    monkeypatch.setattr(store, "read_index", lambda place: (times.append(place), read(place))[1])
    assert current.current_image(directory, print).digest == DIGESTS[0]
    assert times == [directory]
