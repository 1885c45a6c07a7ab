"""Copies of the files that engines bind: what is sent, and when once more."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.model import FileCopy
from bufferzone.sandbox.copies import Copies
from bufferzone.wire import agent


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    file = tmp_path / "hosts"
    file.write_text("")
    file.chmod(0o644)
    return file


def test_a_file_that_is_filled_after_create_is_sent_again_at_start(hosts: Path) -> None:
    sent, copies = list[agent.WriteFileRequest](), Copies()
    with ExitStack() as undo:
        copies.give([FileCopy(source=str(hosts), name="a.0")], sent.append, undo)
        copies.renew(sent.append)
        assert [(request.name, request.data) for request in sent] == [("a.0", b"")]
        hosts.write_text("127.0.0.1 localhost\n")
        copies.renew(sent.append)
        copies.renew(sent.append)
        assert [request.data for request in sent] == [b"", b"127.0.0.1 localhost\n"]
        hosts.chmod(0o600)
        copies.renew(sent.append)
        assert [request.mode for request in sent] == [0o644, 0o644, 0o600]


def test_the_file_that_was_there_at_create_counts_whatever_has_its_name(hosts: Path) -> None:
    sent, copies = list[agent.WriteFileRequest](), Copies()
    with ExitStack() as undo:
        copies.give([FileCopy(source=str(hosts), name="a.0")], sent.append, undo)
        hosts.unlink()
        hosts.symlink_to("/etc/passwd")
        copies.renew(sent.append)
    assert len(sent) == 1


def test_undoing_closes_what_was_opened_and_a_file_that_grew_is_refused(hosts: Path) -> None:
    before, copies = os.listdir("/proc/self/fd"), Copies()
    with ExitStack() as undo:
        copies.give([FileCopy(source=str(hosts), name="a.0")], lambda request: None, undo)
        hosts.write_bytes(bytes(agent.MOST_FILE + 1))
        with pytest.raises(HostError, match=f"cannot read {hosts}: more than 65536 bytes"):
            copies.renew(lambda request: None)
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(HostError, match="No such file"):
        copies.give([FileCopy(source=str(hosts.parent / "gone"), name="a.1")], print, ExitStack())
