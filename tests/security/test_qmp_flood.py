"""A QEMU that was taken over and never stops talking: the shim goes on all the same."""

import os
import threading

import pytest

from bufferzone.errors import VmmError
from bufferzone.vmm.qemu.qmp import Qmp


class Torrent:
    """A socket that always has one more event, however fast it is read."""

    def __init__(self):
        self._read, self._write = os.pipe()
        os.write(self._write, b"x")

        self.closed = False

    def fileno(self):
        return self._read

    def setblocking(self, blocking):
        pass

    def recv(self, size):
        if self.closed:
            raise OSError(9, "closed")
        return b'{"event": "X"}\n'

    def close(self):
        self.closed = True


@pytest.fixture
def flooded(monkeypatch):
    torrent = Torrent()
    monkeypatch.setattr(Qmp, "_send", lambda self, data, deadline, command: None)
    yield Qmp(torrent)
    torrent.close()
    os.close(torrent._read)
    os.close(torrent._write)


def within(seconds, function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@pytest.mark.parametrize("call", ["greet", "execute"])
def test_a_flood_of_events_does_not_stretch_a_deadline(flooded, call):
    told = []

    def ask():
        with pytest.raises(VmmError) as caught:
            flooded.greet(0.2) if call == "greet" else flooded.execute("stop", timeout_s=0.2)
        told.append(caught.value.code)

    assert within(20, ask)
    assert told == ["qmp-timeout"]


def test_what_has_arrived_is_taken_in_though_more_arrives_for_ever(flooded):
    assert within(20, flooded.pump)
    assert len(flooded.events) <= 256
