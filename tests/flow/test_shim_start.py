"""containerd's `start` of a container: waits for no VM; what is wrong is told to whoever creates."""

from __future__ import annotations

import os
import signal

import pytest

from bufferzone import state
from bufferzone.errors import BufferzoneError, CallerError, NotFoundError
from bufferzone.wire import task
from flow.cli import needs_host
from flow.shim_client import Shim, bz
from vm.verbs import await_end, await_true

pytestmark = needs_host

__all__ = ["bz"]  # a fixture
ID = "one"
#: its VM never boots
_STUCK = "import signal; from bufferzone.shim import daemon; daemon._run = lambda *_, **__: signal.pause()"
#: there is no room for one more descriptor where it is begun
_NO_PIPE = """
import errno, os

def pipe():
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

os.pipe = pipe
"""
_EXITS = "sys.exit(3)"


@pytest.fixture
def begin(bz):
    """Starts a shim for a bundle of such a program."""
    begun = []

    def begin(*args, **more):
        begun.append(Shim(bz, ID, bz.bundle(*args, name=ID, **more)))
        return begun[-1]

    yield begin
    for shim in begun:
        shim.close()


@pytest.fixture
def stuck(bz, begin):
    """A shim whose VM never boots, and the pid of the process that waits for that."""
    bz.odd_shim(_STUCK)
    shim, owner = begin("pause"), str(bz.root / ID)
    await_true(lambda: os.path.isdir(owner) and state.owner_pid(owner), "the shim's own process")
    return shim, state.owner_pid(owner)


def create(shim, service=task.SERVICE):
    return shim.ask("Create", task.CreateTaskRequest(id=ID, bundle=str(shim.bundle)), service)


def assert_leaves_nothing(shim):
    """As containerd goes on after a Create that failed."""
    with pytest.raises(NotFoundError, match=f"container {ID} does not exist"):
        shim.ask("Delete", task.DeleteRequest(id=ID))
    shim.ask("Shutdown", task.ShutdownRequest(id=ID, now=True))
    shim.await_gone()
    shim.run("delete", ID)
    assert shim.cli.left() == []
    assert not os.path.exists(shim.address)


@pytest.mark.parametrize("service", [task.SERVICE, task.SERVICE_V3])
def test_a_container_that_is_asked_for_at_once_waits_for_its_vm(begin, service):
    shim = begin("end", "3")
    pid = create(shim, service).pid
    assert pid
    shim.ask("Start", task.StartRequest(id=ID), service)
    assert shim.ask("Wait", task.WaitRequest(id=ID), service).exit_status == 3
    assert shim.ask("Delete", task.DeleteRequest(id=ID), service).pid == pid
    shim.ask("Shutdown", task.ShutdownRequest(id=ID), service)
    shim.await_gone()
    assert shim.cli.left() == []
    assert not os.path.exists(shim.address)


def test_start_ends_while_the_vm_boots_and_delete_ends_that(stuck):
    shim, pid = stuck
    shim.run("delete", ID)
    await_end(pid)
    with pytest.raises(BufferzoneError, match="the shim died before it listened"):
        create(shim)
    assert_leaves_nothing(shim)


def test_a_vm_that_does_not_boot_is_told_to_whoever_creates(bz, begin):
    bz.odd_agent(_EXITS)
    shim = begin("pause")
    with shim.connect():
        pass  # somebody looks whether it listens
    with pytest.raises(BufferzoneError, match="the host without a VM exit status 3"):
        create(shim)
    assert_leaves_nothing(shim)


def test_a_bundle_that_is_refused_is_told_to_whoever_creates(begin):
    shim = begin("pause", linux={"namespaces": [{"type": "mount"}, {"type": "pid"}]})
    with pytest.raises(CallerError, match="a VM cannot use the host's network"):
        create(shim)
    assert_leaves_nothing(shim)


def test_a_shim_that_is_killed_while_its_vm_boots_is_told_to_whoever_creates(stuck):
    shim, pid = stuck
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BufferzoneError, match="the shim died before it listened"):
        create(shim)
    assert_leaves_nothing(shim)


def test_a_host_that_cannot_begin_the_shim_is_told_to_whoever_creates(bz, begin):
    bz.odd_shim(_NO_PIPE)
    bz.root.mkdir(mode=0o700, parents=True)  # it does not come as far
    shim = begin("pause")
    with pytest.raises(BufferzoneError, match="cannot start the shim: Too many open files"):
        create(shim)
    assert_leaves_nothing(shim)
