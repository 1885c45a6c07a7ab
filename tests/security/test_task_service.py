"""A hostile guest against the Task service: events without end, and errors in place of an exit status."""

import threading
import types

import pytest

from bufferzone.errors import GuestError, VmmError
from bufferzone.shim import oom
from bufferzone.shim.process import Process
from bufferzone.shim.stdio import Stdio
from bufferzone.shim.table import Table
from bufferzone.wire import agent


def watch(call, published):
    """The watch of a shim whose one container is `c`."""
    table = Table()
    table.reserve(
        Process(agent.ProcessRef(id="c"), bundle="/", terminal=False, uris=("", "", ""), stdio=Stdio(), pid=0)
    )
    events = types.SimpleNamespace(publish=published.append)
    oom.OomReporter(table, events).watch(types.SimpleNamespace(call=call))


def test_a_guest_that_tells_of_oom_without_end_is_heard_once_in_a_while(monkeypatch):
    pauses, published = [], []
    monkeypatch.setattr(oom.time, "sleep", pauses.append)

    def call(method, request, reply):
        if len(pauses) == 3:
            raise VmmError("the sandbox has ended")
        return agent.OomEvents(ids=["c"] * 65536 + ["other"])

    watch(call, published)
    assert len(published) == 3  # one event an answer, and a pause before the next question
    assert all(pause >= 1 for pause in pauses)


def test_a_line_that_is_no_text_can_be_told(tmp_path):
    with open(tmp_path / "err", "wb") as file:
        stdio = Stdio(stderr=file.fileno())
        stdio.print_line(b"the guest said \xff\n".decode("utf-8", "surrogateescape"))
    assert b"udcff" in (tmp_path / "err").read_bytes()


@pytest.mark.parametrize("error", [GuestError("no"), VmmError("gone")])
def test_the_watch_for_oom_ends_with_the_channel(error):
    def call(method, request, reply):
        raise error

    thread = threading.Thread(target=watch, args=(call, []))
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
