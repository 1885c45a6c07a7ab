"""The template store: what is used, what never is, who makes one, what is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.guestimage import template_store
from bufferzone.storage import ram

KEY = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
MAKE = """
import sys
from bufferzone.guestimage import template_store
with template_store.making(sys.argv[1], sys.argv[2]) as directory:
    print("no" if directory is None else directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "templates")


def make(
    store: str, key: str = KEY, memory: bytes = b"memory", used_s: int = 0, *, is_mapped: bool = False
) -> Path:
    """Publish a template."""
    with template_store.making(store, key) as directory:
        assert directory is not None
        Path(directory, template_store.MEMORY).write_bytes(memory)
        Path(directory, template_store.STATE).write_bytes(b"state")
        facts = {"vcpus": 1, "memory_mib": 512}
        template_store.publish(store, key, directory, facts, is_mapped=is_mapped)
    made = Path(store, key)
    if used_s:
        os.utime(made, (used_s, used_s))
    return made


def assert_unused(store: str) -> str:
    with pytest.raises(HostError) as caught:
        template_store.open_template(store, KEY)
    assert caught.value.code == "template-damaged"
    return str(caught.value.message)


def start_maker(store: str, key: str = KEY) -> tuple[subprocess.Popen[str], str]:
    """Another process that makes `key` until its stdin is closed, and what it got to work in."""
    environment = {"PYTHONPATH": str(Path(template_store.__file__).parents[2])}
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKE, store, key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert maker.stdout
    return maker, maker.stdout.readline().strip()


def end(maker: subprocess.Popen[str]) -> None:
    maker.communicate(timeout=120)


def test_a_published_template_is_opened_with_its_facts(store: str) -> None:
    make(store)
    found = template_store.open_template(store, KEY)
    assert found is not None
    with closing(found):
        assert os.pread(found.memory_fd, 100, 0) == b"memory"
        assert os.pread(found.state_fd, 100, 0) == b"state"
        assert found.meta["memory_mib"] == 512
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(found.memory_fd, b"x")
    assert sorted(os.listdir(store)) == [KEY, f"{KEY}.lock", "lock"]


def test_a_template_that_is_not_there_is_none(store: str) -> None:
    assert template_store.open_template(store, KEY) is None
    make(store)
    assert template_store.open_template(store, OTHER) is None


@pytest.mark.parametrize("name", ["", template_store.MEMORY, template_store.STATE, template_store.META])
@pytest.mark.parametrize("mode", [0o660, 0o604, 0o777])
def test_what_others_may_touch_is_not_used(store: str, name: str, mode: int) -> None:
    (make(store) / name).chmod(mode)
    assert "not private" in assert_unused(store)


def test_memory_that_vmms_map_may_be_read_by_them_and_its_directory_by_nobody(store: str) -> None:
    made = make(store, is_mapped=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (made, *made.iterdir())}
    assert modes == {
        KEY: 0o700,
        template_store.MEMORY: 0o444,
        template_store.STATE: 0o600,
        "meta.json": 0o600,
    }
    found = template_store.open_template(store, KEY)
    assert found is not None
    found.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
@pytest.mark.parametrize("name", ["", template_store.MEMORY, template_store.STATE, template_store.META])
def test_what_belongs_to_somebody_else_is_not_used(store: str, name: str) -> None:
    os.chown(make(store) / name, 12345, 0)
    assert "not private" in assert_unused(store)


@pytest.mark.parametrize("name", [template_store.MEMORY, template_store.STATE])
def test_a_truncated_file_is_not_used(store: str, name: str) -> None:
    os.truncate(make(store) / name, 3)
    assert "was changed after it was written" in assert_unused(store)


@pytest.mark.parametrize("name", [template_store.MEMORY, template_store.STATE])
def test_a_rewritten_file_is_not_used(store: str, name: str) -> None:
    path = make(store) / name
    with path.open("r+b") as file:
        file.write(b"M")
    assert "was changed after it was written" in assert_unused(store)


@pytest.mark.parametrize("name", [template_store.MEMORY, template_store.STATE])
def test_a_rewritten_file_whose_time_was_put_back_is_not_used(store: str, name: str) -> None:
    path = make(store) / name
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"M")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert "was changed after it was written" in assert_unused(store)


def test_a_device_state_that_rotted_on_the_disk_is_not_used(store: str) -> None:
    made = make(store)
    path = made / template_store.STATE
    path.write_bytes(b"stale")
    found = path.stat()
    meta = json.loads((made / template_store.META).read_text())
    seen = [found.st_size, found.st_blocks, found.st_mtime_ns, found.st_ctime_ns]
    meta["files"][template_store.STATE] = seen  # as if nobody had written
    (made / template_store.META).write_text(json.dumps(meta))
    assert "state is not what was written" in assert_unused(store)


@pytest.mark.parametrize("name", [template_store.MEMORY, template_store.STATE, template_store.META])
def test_a_missing_file_is_damage(store: str, name: str) -> None:
    (make(store) / name).unlink()
    assert name in assert_unused(store)


@pytest.mark.parametrize("name", [template_store.MEMORY, template_store.STATE, template_store.META])
def test_a_symbolic_link_is_not_followed(store: str, name: str, tmp_path: Path) -> None:
    path = make(store) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert name in assert_unused(store)


def test_a_symbolic_link_to_a_template_is_no_template(store: str, tmp_path: Path) -> None:
    made = make(store)
    made.rename(tmp_path / "elsewhere")
    made.symlink_to(tmp_path / "elsewhere")
    assert template_store.open_template(store, KEY) is None
    make(store)
    assert not made.is_symlink()
    assert (tmp_path / "elsewhere" / template_store.MEMORY).exists()


BAD = ["", "{", "[]", '{"facts": 1}', '{"files": 1}', '{"files": {"memory": [1]}}', "\xff"]


@pytest.mark.parametrize("text", BAD)
def test_a_description_that_makes_no_sense_is_damage(store: str, text: str) -> None:
    (make(store) / template_store.META).write_text(text)
    assert template_store.META in assert_unused(store)
    assert template_store.listing(store)[0]["key"] == KEY


def test_an_open_template_survives_its_removal_and_its_replacement(store: str) -> None:
    make(store)
    found = template_store.open_template(store, KEY)
    assert found is not None
    with closing(found):
        make(store, memory=b"newer")
        assert os.pread(found.memory_fd, 100, 0) == b"memory"
        assert template_store.remove(store, KEY)
        assert os.pread(found.memory_fd, 100, 0) == b"memory"
    assert not template_store.remove(store, KEY)
    assert not template_store.remove(store, "../x")


def test_one_of_several_makers_makes_it(store: str) -> None:
    first, directory = start_maker(store)
    second, nothing = start_maker(store)
    assert os.path.dirname(directory) == store
    assert nothing == "no"
    end(second)
    end(first)
    third, again = start_maker(store)
    assert again not in ("no", directory)
    end(third)
    assert os.listdir(store) == [f"{KEY}.lock"]


def test_prune_leaves_a_maker_at_work_alone_and_removes_what_a_killed_one_left(store: str) -> None:
    maker, directory = start_maker(store)
    template_store.prune(store, keep=9, most_bytes=1 << 30)
    assert os.path.isdir(directory)
    maker.kill()
    end(maker)
    assert os.path.isdir(directory)
    template_store.prune(store, keep=9, most_bytes=1 << 30)
    assert os.listdir(store) == ["lock"]


def test_prune_keeps_the_most_recently_used_within_number_and_bytes(store: str) -> None:
    keys = [letter * 32 for letter in "abcd"]
    for age, key in enumerate(keys):
        make(store, key, b"x" * 100_000, used_s=1000 - age)
    assert template_store.prune(store, keep=3, most_bytes=1 << 30) == [keys[3]]
    one = template_store.listing(store)[0]["bytes"]
    assert template_store.prune(store, keep=3, most_bytes=2 * one) == [keys[2]]
    assert [row["key"] for row in template_store.listing(store)] == keys[:2]
    assert template_store.prune(store, keep=0, most_bytes=0) == keys[:2]
    assert os.listdir(store) == ["lock"]


def test_opening_makes_a_template_the_most_recently_used(store: str) -> None:
    make(store, OTHER, used_s=2000)
    make(store, KEY, used_s=1000)
    found = template_store.open_template(store, KEY)
    assert found is not None
    found.close()
    assert template_store.listing(store)[0]["key"] == KEY


def test_prune_removes_damaged_templates(store: str) -> None:
    (make(store) / template_store.META).unlink()
    assert template_store.listing(store)[0]["damaged"]
    assert template_store.prune(store, keep=9, most_bytes=1 << 30) == [KEY]


def test_the_key_depends_on_everything_in_the_shape() -> None:
    shape = {"image": "a", "argv": ["x"], "version": 1}
    assert template_store.key_of(shape) == template_store.key_of(json.loads(json.dumps(shape)))
    assert template_store.key_of(shape) != template_store.key_of({**shape, "argv": ["y"]})


def test_packed_memory_has_the_same_bytes_and_holes_for_zeros(tmp_path: Path) -> None:
    page, size = os.urandom(4096), 1 << 20
    source, target = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("a", "b"))
    for fd in (source, target):
        os.ftruncate(fd, size)
    os.pwrite(source, page + bytes(1 << 17) + page, 0)
    os.pwrite(source, page, size - 4096)
    assert ram.pack(source, target) <= 3 * (16 << 10)
    assert os.pread(target, size, 0) == os.pread(source, size, 0)
    assert os.fstat(target).st_blocks < os.fstat(source).st_blocks
    for fd in (source, target):
        os.close(fd)
