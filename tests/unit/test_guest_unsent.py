"""TCP connections of processes that have ended, as the agent counts them."""

from __future__ import annotations

import socket

import pytest

from bufferzone.guest import unsent

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: 6402000A:1F90 0202000A:CA38 {:02X} 0000000B:00000000 01:00000014 00000000     0        0 0\n"


@pytest.mark.parametrize(
    ("states", "expected"), [((4, 9, 11), 3), ((1, 2, 3, 5, 6, 7, 8, 10, 12), 0), ((), 0), ((1, 4), 1)]
)
def test_what_waits_for_its_last_acknowledgement_counts(tmp_path, monkeypatch, states, expected):
    table = tmp_path / "tcp"
    table.write_text(HEAD + "".join(ROW.format(state) for state in states))
    monkeypatch.setattr(unsent, "_TABLES", (str(table), str(tmp_path / "none")))
    assert unsent.count() == expected


def test_the_kernels_own_tables_are_read():
    before = unsent.count()
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert unsent.count() == before
