"""Ranges of locked bytes as values, and the kernel's table of locks."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from bufferzone.container import lockranges
from bufferzone.linux.filelock import END
from bufferzone.wire.locks import FLOCK, RANGE

TABLE = """\
1: POSIX  ADVISORY  WRITE 71 00:2a:5678 0 EOF
2: FLOCK  ADVISORY  READ 72 00:2a:5678 0 EOF
2: -> FLOCK  ADVISORY  WRITE 73 00:2a:5678 0 EOF
3: OFDLCK ADVISORY  READ -1 00:2a:5678 100 199
4: POSIX  ADVISORY  READ 71 00:2a:9999 0 0
5: DELEG  ACTIVE    READ 70 00:2a:5678 0 EOF
"""


def test_the_table_tells_kind_owner_bytes_and_who_waits_of_one_file():
    rows = lockranges.rows_of(TABLE, "00:2a:5678")
    assert [(row.kind, row.pid, row.segment, row.waits) for row in rows] == [
        (RANGE, 71, (0, END, 2), False),
        (FLOCK, 72, (0, END, 1), False),
        (FLOCK, 73, (0, END, 2), True),
        (RANGE, -1, (100, 200, 1), False),
    ]


def test_the_kernel_spells_a_file_as_we_do(tmp_path: Path):
    with open(tmp_path / "f", "w") as file:
        lock = struct.pack("=hhxxxxqqixxxx", fcntl.F_WRLCK, 0, 10, 5, 0)
        fcntl.fcntl(file, fcntl.F_SETLK, lock)
        facts = os.fstat(file.fileno())
        key = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
        rows = lockranges.rows_of(Path("/proc/locks").read_text(), key)
    assert [(row.kind, row.pid, row.segment) for row in rows] == [(RANGE, os.getpid(), (10, 15, 2))]


def test_the_strongest_mode_of_each_byte_counts():
    assert lockranges.merge([(0, 10, 1), (5, 15, 2), (15, 20, 2)]) == [(0, 5, 1), (5, 20, 2)]
    assert lockranges.merge([(0, 10, 0)]) == []


def test_only_what_is_not_held_is_asked_for():
    held = [(0, 10, 1), (20, 30, 2)]
    assert lockranges.above([(0, 30, 1)], held) == [(10, 20, 1)]
    assert lockranges.above([(0, 10, 2)], held) == [(0, 10, 2)]
    assert lockranges.above([(22, 25, 1)], held) == []


def test_what_nobody_has_any_more_is_given_back_down_to_what_stays():
    held = [(0, 10, 2), (20, 30, 1)]
    assert lockranges.below([(0, 5, 1)], held) == [(0, 5, 1), (5, 10, 0), (20, 30, 0)]
    assert lockranges.below([(0, 40, 2)], held) == []
    assert lockranges.least([(0, 5, 1), (6, 40, 2)], held) == [(0, 5, 1), (6, 10, 2), (20, 30, 1)]


def test_a_range_lock_of_somebody_else_is_in_the_way_and_ones_own_is_not():
    rows = lockranges.rows_of(TABLE, "00:2a:5678")
    assert lockranges.in_the_way(rows, (0, 1, 1), pid=99)
    assert not lockranges.in_the_way(rows, (0, 1, 2), pid=71)
    assert lockranges.in_the_way(rows, (150, 160, 2), pid=71)
    assert not lockranges.in_the_way(rows, (150, 160, 1), pid=71)
