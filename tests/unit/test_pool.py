"""The pool without VMs: the keeper, and how a verb takes what waits or does without."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import types

import pytest

from bufferzone import config, jsontext, state
from bufferzone.client import pool_claim
from bufferzone.errors import VmmError
from bufferzone.linux import freezer
from bufferzone.oci import Spec
from bufferzone.pool import keeper, warmup, worker
from bufferzone.shim.arguments import Arguments
from unit.pool_world import Running, is_there


@pytest.fixture
def begin(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "QUIET_S", 0.01)
    monkeypatch.setattr(pool_claim, "_CLAIM_S", 0.5)
    begun = []

    def start(*modes, **more):
        begun.append(Running(tmp_path / "root", *modes, **more))
        return begun[-1]

    yield start
    for running in begun:
        running.end()


def test_a_claim_takes_the_one_that_waits_and_another_is_made(begin):
    running = begin()
    (waiting,) = running.await_states("waiting")
    assert running.claim() == waiting
    (next_one,) = running.await_states("waiting")
    assert next_one != waiting
    assert is_there(waiting)


def test_while_the_one_that_was_taken_gets_ready_the_caller_can_do_something_else(begin):
    running, done = begin(), []
    (waiting,) = running.await_states("waiting")
    assert running.claim(meanwhile=lambda: done.append(is_there(waiting))) == waiting
    assert done == [True]
    running.ask("stop")
    with pytest.raises(pool_claim.NoKeeper):
        running.claim(meanwhile=lambda: done.append(False))
    assert done == [True]


def test_one_after_the_other_is_made_up_to_the_size(begin):
    running = begin(size=3)
    running.await_states("waiting", "waiting", "waiting")
    running.settings = config.Settings(pool_size=1, pool_idle_s=60)
    running.await_states("waiting")
    end = time.monotonic() + 120
    while sum(map(is_there, running.spawned)) > 1 and time.monotonic() < end:
        running.ask("list")
    assert sum(map(is_there, running.spawned)) == 1


def test_stop_ends_those_that_wait_and_none_that_was_taken(begin):
    running = begin(size=2)
    running.await_states("waiting", "waiting")
    taken = running.claim()
    running.ask("stop")
    assert [pid for pid in running.spawned if is_there(pid)] == [taken]
    assert os.listdir(running.directory) == ["1"]  # of the one that was taken: a real shim removes it


def test_without_a_start_the_keeper_ends_by_itself(begin):
    running = begin(idle_s=1)
    running._thread.join(20)
    assert not running._thread.is_alive()
    assert not any(map(is_there, running.spawned))


def test_a_size_of_zero_ends_the_pool(begin):
    running = begin()
    running.await_states("waiting")
    running.settings = config.Settings(pool_size=0)
    try:
        running.ask("list")  # it looks again at every request
    except OSError:
        pass  # it has looked already
    running._thread.join(20)
    assert not any(map(is_there, running.spawned))
    with pytest.raises(pool_claim.NoKeeper):
        running.claim()


@pytest.mark.parametrize("mode", ["refuse", "late", "die-after-go"])
def test_whatever_goes_wrong_in_a_claim_leaves_the_directory_to_another(begin, mode):
    running = begin(mode, "fine")
    (waiting,) = running.await_states("waiting")
    assert running.claim() == 0
    assert not (running.root / "c" / state.SOCKET).exists()
    if mode == "late":
        os.kill(waiting, signal.SIGKILL)
    (fine,) = running.await_states("waiting")
    assert running.claim() == fine


def test_one_that_ends_while_it_waits_is_replaced(begin):
    running = begin()
    (waiting,) = running.await_states("waiting")
    os.kill(waiting, signal.SIGKILL)
    while running.await_states("waiting") == [waiting]:
        pass
    assert running.claim() in running.spawned[1:]


def test_where_none_can_be_made_it_is_said_and_tried_again_later_and_not_at_once(begin):
    running = begin("fail")
    end = time.monotonic() + 120
    while not running.logged and time.monotonic() < end:
        running.ask("list")
    assert "no template of this shape" in running.logged[0]
    assert running.claim() == 0
    assert len(running.spawned) == 1


def test_another_shape_does_not_get_what_waits_and_is_filled_up_first(begin):
    running = begin()
    running.await_states("waiting")
    assert running.claim(linux={"resources": {"memory": {"limit": 2 << 30}}}) == 0
    running.await_states("waiting", "waiting")
    sizes = [row["memory_mib"] for row in json.loads(running.ask("list"))["vms"]]
    assert sizes[0] == 512
    assert sizes[1] > 2048


def test_a_caller_of_other_namespaces_is_refused(begin, monkeypatch):
    running = begin()
    (waiting,) = running.await_states("waiting")
    running.keeper._namespaces = "net:[1]"
    assert running.claim() == 0
    assert "other namespaces" in running.logged[-1]
    assert running.await_states("waiting") == [waiting]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]\n", b'{"do": "claim"}\n', b"\xff\n", b"1" * (1 << 17) + b"\n"]
)
def test_nonsense_on_the_socket_hurts_nobody(begin, data):
    running = begin()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(running.directory / state.POOL_SOCKET))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has had enough
    running.await_states("waiting")
    assert running.claim() in running.spawned


def test_without_a_keeper_a_claim_says_so(tmp_path):
    with pytest.raises(pool_claim.NoKeeper):
        pool_claim.claim(str(tmp_path / "c"), Spec({}, "/b"), config.Settings(pool_size=1))


def test_requests_are_json_as_json_writes_it():
    value = {"a": [1, True, "x\n\udc80\u20ac"], "b": {"c": False, "d": -3}}
    assert json.loads(jsontext.dumps(value)) == value


def test_the_program_of_the_first_container_writes_its_text_and_ends(tmp_path):
    program = tmp_path / "run"
    program.write_bytes(warmup.program())
    program.chmod(0o755)
    reader, writer = os.pipe()
    pid = os.posix_spawn(program, ["run"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(reader, 100) == b"ready\n"
    os.close(reader)


def test_the_callers_cgroups_are_found_where_they_are_mounted():
    mountinfo = (
        "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "31 25 0:27 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
        "33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    text = "4:cpu,cpuacct:/a\n3:memory:/docker/x/b\n2:freezer:/f\n1:name=systemd:/s:x\n0::/u\n"
    assert freezer.places_of(text, mountinfo) == [
        "/sys/fs/cgroup/cpu,cpuacct/a",
        "/sys/fs/cgroup/memory/b",
        "/sys/fs/cgroup/systemd/s:x",
        "/sys/fs/cgroup/unified/u",
    ]


def test_the_name_of_the_pool_is_no_containers(tmp_path):
    (tmp_path / state.POOL).mkdir()
    assert state.list_ids(str(tmp_path)) == []


def test_who_makes_stand_ins_is_forked_where_the_caller_is_and_before_there_are_threads(monkeypatch):
    order = []

    class Vm:
        def enter(self, mount_namespace):
            order.append("enter")

        def thaw(self, name):
            order.append("thaw")
            raise VmmError("enough")

    monkeypatch.setattr(worker, "StandIns", lambda: order.append("fork"))
    request = {"id": "a", "bundle": "/b", "containerd": {"socket": "/s"}}
    claim = types.SimpleNamespace(request=request, mount_namespace=-1, close=lambda: order.append("close"))
    with pytest.raises(VmmError, match="enough"):
        worker._be_taken(Arguments(), Vm(), claim, None, niced=False)
    assert order == ["enter", "fork", "thaw", "close"]
