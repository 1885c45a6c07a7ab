"""The archive writer: what the kernel would read back, and sameness of bytes."""

from __future__ import annotations

import io
import stat

import pytest

from bufferzone.guestimage import cpio


def archive(entries: list[cpio.Entry]) -> bytes:
    out = io.BytesIO()
    cpio.write(entries, out)
    return out.getvalue()


def read_back(data: bytes) -> list[tuple[str, list[int], bytes]]:
    """(name, 13 numbers of the header, content) of each record, read after the kernel's own description."""
    found, at = [], 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        size, name_size = numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = at + (110 + name_size + 3 & ~3)
        found.append((name, numbers, data[start : start + size]))
        at = start + (size + 3 & ~3)
    return found


TREE = [
    cpio.regular("/usr/bin/tool", b"12345", 0o755),
    cpio.symlink("/bin", "usr/bin"),
    cpio.character_device("/dev/console", 5, 1, 0o600),
    cpio.directory("/tmp", 0o1777),
]


def test_what_is_written_is_what_is_read_back() -> None:
    rows = {name: (numbers, content) for name, numbers, content in read_back(archive(TREE))}
    assert rows["usr/bin/tool"][1] == b"12345"
    assert rows["usr/bin/tool"][0][1] == stat.S_IFREG | 0o755
    assert rows["bin"][1] == b"usr/bin"
    assert stat.S_ISLNK(rows["bin"][0][1])
    assert stat.S_ISCHR(rows["dev/console"][0][1])
    assert rows["dev/console"][0][9:11] == [5, 1]
    assert rows["tmp"][0][1] == stat.S_IFDIR | 0o1777


def test_parents_come_before_their_children_and_the_trailer_last() -> None:
    names = [name for name, _, _ in read_back(archive(TREE))]
    assert names.index("usr") < names.index("usr/bin") < names.index("usr/bin/tool")
    assert names.index("dev") < names.index("dev/console")
    assert names[-1] == "TRAILER!!!"


def test_owner_and_time_are_zero_and_inodes_are_counted() -> None:
    rows = read_back(archive(TREE))[:-1]
    assert all(numbers[2:4] == [0, 0] and numbers[5] == 0 for _, numbers, _ in rows)
    assert [numbers[0] for _, numbers, _ in rows] == list(range(1, len(rows) + 1))


def test_the_order_of_the_entries_does_not_change_the_bytes() -> None:
    assert archive(TREE) == archive(TREE[::-1])


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a/", "//a"])
def test_a_path_that_is_not_absolute_and_normal_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="normal absolute"):
        archive([cpio.regular(path, b"")])


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        archive([cpio.regular("/a", b"1"), cpio.regular("/a", b"2")])
