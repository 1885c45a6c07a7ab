"""The Task service against a scripted guest: states, refusals, and what a hostile guest cannot hold up."""

import json
import os
import threading
import types

import pytest

from bufferzone.errors import CallerError, EndedError, ExistsError, NotFoundError, StateError, VmmError
from bufferzone.shim import task as shim_task
from bufferzone.shim.task import TaskService
from bufferzone.wire import agent, task
from bufferzone.wire.proto import Any_, Empty


class Guest:
    """Answers like an agent; processes end when told to. `deaf`: no Signal does, `refusal`: it raises it."""

    def __init__(self):
        self.ends = {}
        self.calls, self.signals = [], []
        self.deaf = False
        self.refusal = None
        self.lost = threading.Event()

    def end_of(self, ref):
        return self.ends.setdefault((ref.id, ref.exec_id), [threading.Event(), 0])

    def call(self, method, request, reply, timeout_s=0):
        self.calls.append(method)
        if method == "Wait":
            event, _ = self.end_of(request)
            while not event.wait(0.01):
                if self.lost.is_set():
                    raise VmmError("the guest is gone")
            return agent.WaitResponse(exit_status=self.end_of(request)[1])
        if method == "Signal":
            self.signals.append(request)
        if method == "Signal" and self.refusal:
            raise self.refusal
        if method == "Signal" and not self.deaf:
            self.finish(request, 128 + request.signal)
        if method == "Read":
            return agent.ReadResponse()
        return reply()

    def tell(self, method, request):
        self.calls.append(f"{method}, not awaited")

    def finish(self, ref, status):
        end = self.end_of(ref)
        end[1] = status
        end[0].set()


class Sandbox:
    """What TaskService needs of `Containers`."""

    def __init__(self):
        self.agent = Guest()
        self.stops = []
        self.hooks = []

    def create(self, container_id, bundle, rootfs, pid, followups, *, foreground, inside):
        self.foreground, self.inside = foreground, inside
        if bundle == "/bad":
            raise StateError("no such bundle")
        return types.SimpleNamespace(id=container_id, pid=pid), []

    def start(self, container):
        self.agent.call("Start", agent.ProcessRef(id=container.id), Empty)

    def exec(self, ref, spec, pid, followups, *, wishes):
        self.agent.calls.append("Exec")
        return []

    def run_hooks(self, container, name, state):
        self.hooks.append(name)

    def stopped(self, alone):
        self.stops.append(alone)

    def delete(self, container):
        self.agent.calls.append("undo")

    def give_up(self, reason):
        self.agent.lost.set()


class Peer:
    """A client that may go away."""

    pid = 4711

    def __init__(self):
        self.actions = []

    def take_fds(self):
        return []

    def when_gone(self, action):
        self.actions.append(action)


class Story:
    """Collects states and events in the order in which they were told."""

    namespace = ""

    def __init__(self):
        self.told = []

    def changed(self, process, container):
        self.told.append(task.STATUS_NAMES[process.status])

    ended = changed

    def text(self, container, status):
        return b"{}"

    def publish(self, event):
        self.told.append(type(event).__name__)


@pytest.fixture
def world():
    sandbox, story = Sandbox(), Story()
    ended = threading.Event()
    service = TaskService(sandbox, story, story, ended.set, single=True)
    return types.SimpleNamespace(service=service, sandbox=sandbox, story=story, ended=ended, peer=Peer())


def create(world, container_id="c", bundle="/b"):
    return world.service.create(world.peer, task.CreateTaskRequest(id=container_id, bundle=bundle))


def test_a_verb_that_goes_on_after_the_end_says_so(world):
    create(world)
    assert not world.sandbox.foreground
    options = Any_(type_url=task.FOREGROUND_URL)
    world.service.create(world.peer, task.CreateTaskRequest(id="d", bundle="/b", options=options))
    assert world.sandbox.foreground


def test_events_come_in_the_order_that_containerd_demands(world):
    create(world)
    world.service.start(world.peer, task.StartRequest(id="c"))
    world.sandbox.agent.finish(agent.ProcessRef(id="c"), 3)
    reply = world.service.wait(world.peer, task.WaitRequest(id="c"))
    assert reply.exit_status == 3
    world.service.delete(world.peer, task.DeleteRequest(id="c"))
    told = world.story.told
    assert told == ["created", "TaskCreate", "running", "TaskStart", "stopped", "TaskExit", "TaskDelete"]
    assert world.sandbox.hooks == ["poststart", "poststop"]


def test_a_container_is_not_made_anew_where_it_is_to_go_on_from_a_checkpoint(world):
    request = task.CreateTaskRequest(id="c", bundle="/b", checkpoint="/run/saved")
    with pytest.raises(CallerError, match="cannot make c from a checkpoint"):
        world.service.create(world.peer, request)
    create(world)


def test_a_failed_create_leaves_the_id_free(world):
    with pytest.raises(StateError, match="no such bundle"):
        create(world, bundle="/bad")
    create(world)
    with pytest.raises(ExistsError):
        create(world)


def test_what_does_not_fit_the_state_is_refused_in_runcs_words(world):
    create(world)
    spec = Any_(value=b'{"args":["x"]}')
    world.service.start(world.peer, task.StartRequest(id="c"))
    world.service.freezing.pause(world.peer, task.PauseRequest(id="c"))
    with pytest.raises(StateError, match="cannot exec in a paused container"):
        world.service.exec(world.peer, task.ExecProcessRequest(id="c", exec_id="e", spec=spec))
    world.service.freezing.resume(world.peer, task.ResumeRequest(id="c"))
    with pytest.raises(StateError, match="cannot start an already running container"):
        world.service.start(world.peer, task.StartRequest(id="c"))
    with pytest.raises(StateError, match="that is not stopped: running"):
        world.service.delete(world.peer, task.DeleteRequest(id="c"))
    world.service.kill(world.peer, task.KillRequest(id="c", signal=9))
    world.service.wait(world.peer, task.WaitRequest(id="c"))
    with pytest.raises(StateError, match="container not running"):
        world.service.kill(world.peer, task.KillRequest(id="c", signal=15))
    with pytest.raises(NotFoundError, match="does not exist"):
        world.service.inquiries.state(world.peer, task.StateRequest(id="other"))


def test_deleting_a_created_container_kills_it_first(world):
    create(world)
    world.service.delete(world.peer, task.DeleteRequest(id="c"))
    assert "Signal" in world.sandbox.agent.calls
    assert "undo" in world.sandbox.agent.calls


@pytest.mark.parametrize(("exec_id", "words"), [("", "container not running"), ("e", "already finished")])
def test_a_process_whose_end_we_have_not_heard_of_has_ended_all_the_same(world, exec_id, words):
    create(world)
    world.service.start(world.peer, task.StartRequest(id="c"))
    if exec_id:
        spec = Any_(value=b'{"args":["x"]}')
        world.service.exec(world.peer, task.ExecProcessRequest(id="c", exec_id="e", spec=spec))
        world.service.start(world.peer, task.StartRequest(id="c", exec_id="e"))
    world.sandbox.agent.refusal = StateError("process already finished", code=agent.FINISHED)
    with pytest.raises(EndedError, match=words):
        world.service.kill(world.peer, task.KillRequest(id="c", exec_id=exec_id, signal=15))
    world.sandbox.agent.refusal = StateError("frozen", code="other")
    with pytest.raises(StateError, match="frozen"):
        world.service.kill(world.peer, task.KillRequest(id="c", exec_id=exec_id, signal=15))
    world.sandbox.agent.refusal = None


def test_a_guest_that_ignores_sigkill_goes_down_as_a_whole(world, monkeypatch):
    monkeypatch.setattr(shim_task, "_KILL_S", 0.05)
    create(world)
    world.service.start(world.peer, task.StartRequest(id="c"))
    world.sandbox.agent.deaf = True
    world.service.kill(world.peer, task.KillRequest(id="c", signal=9))
    assert world.service.wait(world.peer, task.WaitRequest(id="c")).exit_status == 137


def test_the_container_ends_with_the_process_that_stands_for_it(world):
    read_end, write_end = os.pipe()
    world.peer.take_fds = lambda: [os.dup(write_end)]
    request = task.CreateTaskRequest(id="c", bundle="/b", stdout="fd:0")
    assert world.service.create(world.peer, request).pid == Peer.pid
    for action in world.peer.actions:
        action()
    assert world.service.wait(world.peer, task.WaitRequest(id="c")).exit_status == 137
    os.close(read_end)
    os.close(write_end)


def test_a_guest_that_outlives_the_process_that_stands_for_it_goes_down(world, monkeypatch):
    monkeypatch.setattr(shim_task, "_KILL_S", 0.05)
    create(world)
    world.sandbox.agent.deaf = True
    world.service._abandoned(world.service._table.find("c"))
    assert world.sandbox.agent.lost.wait(20)
    assert world.service.wait(world.peer, task.WaitRequest(id="c")).exit_status == 137


def test_the_exit_of_an_exec_is_told_before_that_of_the_init(world):
    create(world)
    world.service.start(world.peer, task.StartRequest(id="c"))
    spec = Any_(value=b'{"args":["x"]}')
    world.service.exec(world.peer, task.ExecProcessRequest(id="c", exec_id="e", spec=spec))
    world.service.start(world.peer, task.StartRequest(id="c", exec_id="e"))
    world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
    world.sandbox.agent.finish(agent.ProcessRef(id="c", exec_id="e"), 5)
    world.service.wait(world.peer, task.WaitRequest(id="c"))
    exits = [name for name in world.story.told if name in ("TaskExit", "stopped")]
    assert exits == ["TaskExit", "stopped", "TaskExit"]


def test_who_asked_for_a_run_does_not_wait_until_the_guest_has_forgotten_it(world):
    create(world)
    world.service.start(world.peer, task.StartRequest(id="c"))
    world.sandbox.agent.finish(agent.ProcessRef(id="c", exec_id="e"), 5)
    spec = Any_(type_url=f"{task.OWN_PROCESS_URL}/{task.HELD}", value=b'{"args":["x"]}')
    request = task.ExecProcessRequest(id="c", exec_id="e", spec=spec)
    assert world.service.runs.run(world.peer, request).exit_status == 5
    assert world.sandbox.agent.calls[-1] == "Delete, not awaited"
    assert "Delete" not in world.sandbox.agent.calls
    assert world.story.told[-2:] == ["TaskExit", "TaskDelete"]
    with pytest.raises(NotFoundError):
        world.service.table.find("c", "e")


def test_an_exec_that_ended_is_freed_when_its_waiter_goes(world):
    create(world)
    world.service.start(world.peer, task.StartRequest(id="c"))
    spec = Any_(value=b'{"args":["x"]}')
    world.service.exec(world.peer, task.ExecProcessRequest(id="c", exec_id="e", spec=spec))
    world.service.start(world.peer, task.StartRequest(id="c", exec_id="e"))
    world.sandbox.agent.finish(agent.ProcessRef(id="c", exec_id="e"), 5)
    assert world.service.wait(world.peer, task.WaitRequest(id="c", exec_id="e")).exit_status == 5
    world.service._abandoned(world.service._table.find("c", "e"))
    with pytest.raises(NotFoundError):
        world.service._table.find("c", "e")
    assert world.service._table.find("c").status == task.RUNNING


def test_the_vm_ends_with_its_last_container(world):
    create(world)
    create(world, "d")
    world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
    world.service.wait(world.peer, task.WaitRequest(id="c"))
    assert world.sandbox.stops == [False]
    world.service.delete(world.peer, task.DeleteRequest(id="c"))
    assert world.sandbox.stops == [False]
    world.sandbox.agent.finish(agent.ProcessRef(id="d"), 0)
    world.service.wait(world.peer, task.WaitRequest(id="d"))
    assert world.sandbox.stops == [False, True]


def add(world, id, *words):
    """A container as the library makes it: `task.INSIDE` for one more in a sandbox."""
    options = Any_(type_url="/".join([task.FOREGROUND_URL, *words]))
    world.service.create(world.peer, task.CreateTaskRequest(id=id, bundle="/b", options=options))


def test_what_was_added_to_a_sandbox_ends_with_it_and_not_before(world):
    create(world)
    add(world, "d", task.HELD, task.INSIDE)
    assert world.sandbox.inside
    add(world, "e", task.HELD, task.INSIDE)
    world.sandbox.agent.finish(agent.ProcessRef(id="d"), 0)
    world.service.wait(world.peer, task.WaitRequest(id="d"))
    assert world.sandbox.agent.signals == []
    world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
    world.service.wait(world.peer, task.WaitRequest(id="c"))
    assert [(call.id, call.signal, call.all) for call in world.sandbox.agent.signals] == [("e", 9, True)]


def test_what_joined_without_being_added_outlives_the_first(world):
    create(world)
    add(world, "d", task.HELD)
    world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
    world.service.wait(world.peer, task.WaitRequest(id="c"))
    assert world.sandbox.agent.signals == []


def test_what_is_added_while_the_sandbox_ends_ends_too(world):
    create(world)
    made = world.sandbox.create

    def slow(*args, **more):
        world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
        world.service.wait(world.peer, task.WaitRequest(id="c"))
        assert world.sandbox.agent.signals == [], "the guest does not know it yet"
        return made(*args, **more)

    world.sandbox.create = slow
    add(world, "d", task.HELD, task.INSIDE)
    assert [(call.id, call.signal) for call in world.sandbox.agent.signals] == [("d", 9)]


def test_a_container_that_was_not_made_and_that_nobody_deletes_leaves_no_shim(world):
    """Its caller, who was killed, would have asked for the end."""
    create(world)
    made = world.sandbox.create

    def fails(container_id, bundle, *args, **more):
        world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
        world.service.wait(world.peer, task.WaitRequest(id="c"))
        world.service.delete(world.peer, task.DeleteRequest(id="c"))
        with pytest.raises(StateError, match="another container is in its VM"):
            world.service.shutdown(world.peer, task.ShutdownRequest(id="c"))
        return made(container_id, "/bad", *args, **more)

    world.sandbox.create = fails
    with pytest.raises(StateError, match="no such bundle"):
        add(world, "d", task.HELD, task.INSIDE)
    assert world.ended.is_set()


def test_the_first_container_that_was_not_made_leaves_the_shim_to_who_asked(world):
    with pytest.raises(StateError, match="no such bundle"):
        create(world, bundle="/bad")
    assert not world.ended.is_set()


def test_a_container_that_failed_to_join_one_that_ended_meanwhile_leaves_no_vm(world):
    create(world)
    made = world.sandbox.create

    def fails(container_id, bundle, rootfs, pid, followups, **more):
        world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
        world.service.wait(world.peer, task.WaitRequest(id="c"))
        return made(container_id, "/bad", rootfs, pid, followups, **more)

    world.sandbox.create = fails
    with pytest.raises(StateError, match="no such bundle"):
        create(world, "d")
    assert world.sandbox.stops == [False, True]


def test_shutdown_waits_for_the_last_container(world):
    create(world)
    create(world, "d")
    world.service.delete(world.peer, task.DeleteRequest(id="d"))
    with pytest.raises(StateError, match="another container is in its VM") as caught:
        world.service.shutdown(world.peer, task.ShutdownRequest(id="d"))
    assert caught.value.code == "vm-shared"
    assert not world.ended.is_set()
    world.service.delete(world.peer, task.DeleteRequest(id="c"))
    assert isinstance(world.service.shutdown(world.peer, task.ShutdownRequest(id="c")), Empty)
    assert world.ended.is_set()


class StandIns:
    """Makes processes of the host that are none; `lost[n]` is what is called when somebody ends the nth."""

    def __init__(self):
        self.networks, self.lost, self.ended = [], [], []

    def begin(self, network, words, lost):
        self.networks.append((network, words))
        self.lost.append(lost)
        pid = 100 + len(self.lost)
        return types.SimpleNamespace(pid=pid, end=lambda: self.ended.append(pid))


@pytest.fixture
def containerds(tmp_path):
    """A service that containerd started, and the bundle of a container with a network of its own."""
    sandbox, story, makers = Sandbox(), Story(), StandIns()
    ended = threading.Event()
    service = TaskService(sandbox, story, story, ended.set, single=False, stand_ins=makers)
    spec = {"process": {"args": ["run", "it"]}, "linux": {"namespaces": [{"type": "network"}]}}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    return types.SimpleNamespace(
        service=service, sandbox=sandbox, story=story, peer=Peer(), makers=makers, bundle=str(tmp_path)
    )


def begin_exec(world, exec_id="e"):
    spec = Any_(value=b'{"args":["look","around"]}')
    world.service.exec(world.peer, task.ExecProcessRequest(id="c", exec_id=exec_id, spec=spec))
    return world.service.start(world.peer, task.StartRequest(id="c", exec_id=exec_id)).pid


def test_every_task_and_exec_of_containerd_has_a_process_of_its_own(containerds):
    world = containerds
    assert create(world, bundle=world.bundle).pid == 101
    assert world.service.start(world.peer, task.StartRequest(id="c")).pid == 101
    assert begin_exec(world) == 102
    assert world.makers.networks == [("", ["run", "it"]), (None, ["look", "around"])]
    pids = world.service.inquiries.pids(world.peer, task.PidsRequest(id="c"))
    assert [found.pid for found in pids.processes] == [101, 102]
    world.sandbox.agent.finish(agent.ProcessRef(id="c", exec_id="e"), 0)
    world.service.wait(world.peer, task.WaitRequest(id="c", exec_id="e"))
    assert world.makers.ended == [102]
    world.sandbox.agent.finish(agent.ProcessRef(id="c"), 0)
    world.service.wait(world.peer, task.WaitRequest(id="c"))
    assert world.makers.ended == [102, 101]


def test_a_task_that_has_ended_has_its_own_pid_until_it_is_deleted(containerds):
    world = containerds
    create(world, bundle=world.bundle)
    world.service.start(world.peer, task.StartRequest(id="c"))
    begin_exec(world)
    for ref in (agent.ProcessRef(id="c", exec_id="e"), agent.ProcessRef(id="c")):
        world.sandbox.agent.finish(ref, 0)
        world.service.wait(world.peer, task.WaitRequest(id=ref.id, exec_id=ref.exec_id))
    asked = task.PidsRequest(id="c")
    assert [found.pid for found in world.service.inquiries.pids(world.peer, asked).processes] == [101]
    world.service.delete(world.peer, task.DeleteRequest(id="c"))
    with pytest.raises(NotFoundError):
        world.service.inquiries.pids(world.peer, asked)


def test_a_failed_create_leaves_no_process_on_the_host(containerds):
    world = containerds
    world.sandbox.create = lambda *_, **more: (_ for _ in ()).throw(StateError("no"))
    with pytest.raises(StateError, match="no"):
        create(world, bundle=world.bundle)
    assert world.makers.ended == [101]


def test_whoever_kills_what_stands_for_a_task_kills_the_task(containerds):
    world = containerds
    create(world, bundle=world.bundle)
    world.service.start(world.peer, task.StartRequest(id="c"))
    begin_exec(world)
    world.makers.lost[1]()
    assert world.service.wait(world.peer, task.WaitRequest(id="c", exec_id="e")).exit_status == 137
    assert world.service.delete(world.peer, task.DeleteRequest(id="c", exec_id="e")).exit_status == 137
    world.makers.lost[0]()
    assert world.service.wait(world.peer, task.WaitRequest(id="c")).exit_status == 137
