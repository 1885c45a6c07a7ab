"""A hostile guest against the Task service: events without end, and errors in place of an exit status."""

import threading
import types

import pytest

from bufferzone.errors import GuestError, VmmError
from bufferzone.shim import task as shim_task
from bufferzone.shim.stdio import Stdio
from bufferzone.shim.task import TaskService
from bufferzone.wire import agent


def service_for(call, published):
    containers = types.SimpleNamespace(agent=types.SimpleNamespace(call=call))
    events = types.SimpleNamespace(publish=published.append)
    service = TaskService(containers, None, events, lambda: None, single=True)
    service._table.add_container(types.SimpleNamespace(id="c"))
    return service


def test_a_guest_that_tells_of_oom_without_end_is_heard_once_in_a_while(monkeypatch):
    pauses, published = [], []
    monkeypatch.setattr(shim_task.time, "sleep", pauses.append)

    def call(method, request, reply):
        if len(pauses) == 3:
            raise VmmError("the sandbox has ended")
        return agent.OomEvents(ids=["c"] * 65536 + ["other"])

    service_for(call, published).watch_oom()
    assert len(published) == 3  # one event an answer, and a pause before the next question
    assert all(pause >= 1 for pause in pauses)


def test_a_line_that_is_no_text_can_be_told(tmp_path):
    with open(tmp_path / "err", "wb") as file:
        stdio = Stdio(stderr=file.fileno())
        stdio.tell(b"the guest said \xff\n".decode("utf-8", "surrogateescape"))
    assert b"udcff" in (tmp_path / "err").read_bytes()


@pytest.mark.parametrize("error", [GuestError("no"), VmmError("gone")])
def test_the_watch_for_oom_ends_with_the_channel(error):
    def call(method, request, reply):
        raise error

    thread = threading.Thread(target=service_for(call, []).watch_oom)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
