"""A QEMU that was taken over and never stops talking: the shim goes on all the same."""

import socket
import threading

import pytest

from bufferzone.errors import VmmError
from bufferzone.vmm.qmp import Qmp


@pytest.fixture
def flooded():
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def flood():
        try:
            while not stop.is_set():
                theirs.sendall(b'{"event": "X"}\n' * 4000)
        except OSError:
            pass

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    qmp = Qmp(ours)
    yield qmp
    stop.set()
    qmp.close()
    theirs.close()
    thread.join(20)


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
