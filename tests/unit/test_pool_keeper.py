"""The keeper where things go wrong: its socket vanishes, strange files, no room, long requests."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import time
from types import SimpleNamespace

import pytest

from bufferzone import jsontext, state
from bufferzone.client import pool_claim
from bufferzone.linux import inotify
from bufferzone.oci import Spec
from bufferzone.pool import keeper, listener
from unit.pool_world import Running, is_there


@pytest.fixture
def begin(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "QUIET_S", 0.01)
    monkeypatch.setattr(keeper, "_RETRY_S", 0.01)
    begun = []

    def start(*modes, **more):
        begun.append(Running(tmp_path / "root", *modes, **more))
        return begun[-1]

    yield start
    for running in begun:
        running.end()


def assert_ended(running):
    running._thread.join(120)
    assert not running._thread.is_alive()
    assert not any(map(is_there, running.spawned))


def lose_socket(running):
    os.unlink(running.directory / state.POOL_SOCKET)


def remove(directory):
    """The keeper removes things below it at the same time: what one of the two finds gone is no failure."""
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)


def wipe(running):
    remove(running.root)


def wipe_pool(running):
    remove(running.directory)


def rename(running):
    running.root.rename(running.root.with_name("elsewhere"))


def replace(running):
    """As another keeper would."""
    path = running.directory / "new"
    path.write_text("another's")
    path.rename(running.directory / state.POOL_SOCKET)


@pytest.mark.parametrize("lose", [lose_socket, wipe, wipe_pool, rename, replace])
def test_a_keeper_that_nobody_finds_any_more_ends_with_those_that_wait(begin, lose):
    running = begin(size=2)
    running.await_states("waiting", "waiting")
    lose(running)
    assert_ended(running)
    assert "the pool ends" in running.logged[-1]
    places = [running.directory, running.root.with_name("elsewhere") / running.directory.name]
    left = [name for place in places if place.is_dir() for name in os.listdir(place)]
    assert left == (["keeper.sock"] if lose is replace else [])


def test_where_no_event_tells_it_the_keeper_looks_from_time_to_time(begin, monkeypatch):
    def refuse(*directories):
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(inotify, "watch_going", refuse)
    monkeypatch.setattr(keeper, "_LOOK_S", 0.01)
    running = begin()
    running.await_states("waiting")
    lose_socket(running)
    assert_ended(running)


def test_one_that_was_taken_lives_on_when_the_keeper_is_lost(begin):
    running = begin()
    running.await_states("waiting")
    taken = running.claim()
    wipe(running)
    running._thread.join(120)
    assert [pid for pid in running.spawned if is_there(pid)] == [taken]


def test_strange_files_are_passed_over_and_left_alone(begin, tmp_path):
    strange = tmp_path / "root" / "@pool" / "1"
    strange.mkdir(parents=True)
    (strange / "file").write_text("somebody's")
    running = begin()
    running.await_states("waiting")
    assert "File exists" in running.logged[0]
    running.ask("stop")
    assert (strange / "file").read_text() == "somebody's"


def test_a_directory_in_the_sockets_place_is_one_clear_line(begin, tmp_path):
    (tmp_path / "root" / "@pool" / state.POOL_SOCKET).mkdir(parents=True)
    with pytest.raises(keeper.HostError, match=r"cannot listen in .*@pool: Is a directory"):
        begin()


def test_a_full_disk_is_said_and_tried_again(begin, monkeypatch):
    full, mkdir = [True], os.mkdir

    def full_mkdir(path, *more):
        if full[0] and str(path).startswith("/proc/self/fd/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        mkdir(path, *more)

    monkeypatch.setattr(keeper.os, "mkdir", full_mkdir)
    running = begin()
    end = time.monotonic() + 120
    while not running.logged and time.monotonic() < end:
        running.ask("list")
    assert "No space left on device" in running.logged[0]
    assert running.spawned == []
    full[0] = False
    running.await_states("waiting")


def test_what_cannot_be_removed_does_not_stop_the_keeper(begin, monkeypatch):
    def refuse(directory):
        raise keeper.HostError(f"cannot remove {directory}: Read-only file system")

    monkeypatch.setattr(keeper.state, "remove", refuse)
    running = begin()
    (waiting,) = running.await_states("waiting")
    os.kill(waiting, signal.SIGKILL)
    while running.await_states("waiting") == [waiting]:
        pass
    assert "Read-only file system" in running.logged[-1]


def test_a_claim_as_long_as_requests_may_be_reaches_its_waiter(begin):
    running = begin()
    settings = running.settings.with_values(kernel_arguments=("a",) * 14_000)
    directory = running.root / "c"
    directory.mkdir()
    spec = Spec({}, "/" + "\u20ac" * 1000)
    request = jsontext.dumps(pool_claim.shape(spec, settings))
    assert len(request) < listener.MOST_REQUEST - 8192
    assert len(json.dumps(json.loads(request))) > listener.MOST_REQUEST
    assert pool_claim.claim(str(directory), spec, settings) == 0  # from now on they wait for it
    running.await_states("waiting", "waiting")
    assert pool_claim.claim(str(directory), spec, settings) in running.spawned


def test_a_request_that_is_too_long_is_refused_and_hurts_nobody(begin):
    running = begin()
    running.await_states("waiting")
    settings = running.settings.with_values(kernel_arguments=("a",) * 40_000)
    directory = running.root / "c"
    directory.mkdir()
    assert pool_claim.claim(str(directory), Spec({}, "/b"), settings) == 0
    assert running.claim() in running.spawned


def test_the_sockets_directory_may_be_deep(tmp_path):
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    there = listener.Listener(str(directory))
    assert there.is_there()
    there.shut()
    assert not there.is_there()
    there.close()
    assert os.listdir(directory) == []


def test_a_watch_tells_of_what_goes_and_of_nothing_else(tmp_path):
    fd = inotify.watch_going(str(tmp_path))
    with open(fd, "rb", buffering=0) as watch:
        (tmp_path / "file").write_text("x")
        assert watch.read(100) is None
        (tmp_path / "file").unlink()
        inotify.drain(watch.fileno())
        assert watch.read(100) is None
    with pytest.raises(OSError, match="nowhere"):
        inotify.watch_going(str(tmp_path / "nowhere"))


def test_a_verb_takes_away_what_a_taker_that_was_killed_has_made(begin, tmp_path):
    running = begin("die-after-go", "fine")
    running.await_states("waiting")
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (tmp_path / "root" / "c").mkdir()
    left = {"processes": [[os.getpid(), 1]], "cgroups": [str(cgroup)]}
    pool_claim.state.write_leftovers(str(tmp_path / "root" / "c"), left)
    assert running.claim() == 0
    assert not cgroup.exists()


def test_a_second_caller_is_served_while_the_first_says_nothing(begin):
    running = begin()
    running.await_states("waiting")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(running.directory / state.POOL_SOCKET))
        assert len(json.loads(running.ask("list"))["vms"]) == 1


@pytest.mark.parametrize(("real", "ends"), [(True, False), (False, True)])
def test_a_caller_of_another_user_namespace_ends_a_users_pool_and_not_roots(begin, monkeypatch, real, ends):
    monkeypatch.setattr(keeper.identity, "is_real_root", lambda: real)
    running = begin()
    running.await_states("waiting")
    running.keeper._namespaces = "net:[1] user:[1]"
    assert running.claim() == 0
    if ends:
        assert_ended(running)
    else:
        running.await_states("waiting")


def test_a_caller_of_another_version_ends_the_pool(begin, monkeypatch):
    running = begin()
    running.await_states("waiting")
    monkeypatch.setattr(keeper, "programs", SimpleNamespace(PLACE="/usr/lib/bufferzone/older/bufferzone"))
    assert running.claim() == 0
    assert_ended(running)


def test_a_caller_of_other_namespaces_does_not_keep_the_pool_alive(begin):
    running = begin()
    running.await_states("waiting")
    before = running.keeper._used
    running.keeper._namespaces = "net:[1]"
    assert running.claim() == 0
    assert running.keeper._used == before
