"""Whose a network namespace is, with the real kernel: one VM's at a time, found by its inode, let go at the
end; and how a verb finds the shim to join.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import types

import pytest

from bufferzone import log, state
from bufferzone.client import join, start
from bufferzone.errors import CallerError, HostError, StateError
from bufferzone.network import claim, namespace
from bufferzone.sandbox import netns_owner
from bufferzone.sandbox.netns_owner import NetnsOwner
from bufferzone.shim.server import Server
from bufferzone.vm import leftovers
from bufferzone.wire import task

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2: network namespaces"
)
NAME = f"bzr{os.getpid()}"


@pytest.fixture
def netns():
    subprocess.run(["ip", "netns", "add", NAME], check=True, timeout=30)
    fd = namespace.open_path(f"/run/netns/{NAME}")
    yield fd
    os.close(fd)
    subprocess.run(["ip", "netns", "del", NAME], check=True, timeout=30)


class Shim:
    """A state directory with a listening socket, and what it has reserved."""

    def __init__(self, root, id):
        self.directory = state.create(str(root), id)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(f"{self.directory}/shim.sock")
        self.listener.listen()
        self.left = leftovers.Leftovers(self.directory)
        self.reserved = NetnsOwner(self.directory, types.SimpleNamespace(left=self.left))

    def serve(self):
        """Answer who asks to be served too."""

        def connect(peer, request):
            return task.ConnectResponse(shim_pid=os.getpid())

        services = {task.SERVICE: {"Connect": (task.ConnectRequest, connect)}}
        Server(self.listener, services, lambda line: None).start()

    def killed(self):
        """As the kernel leaves it: descriptors closed, files not."""
        self.listener.close()
        for entry in self.reserved._entries.values():
            entry.claimed.close()


@pytest.fixture
def shims(tmp_path):
    made = []

    def make(id):
        made.append(Shim(tmp_path, id))
        return made[-1]

    yield make
    for shim in made:
        shim.listener.close()
        shim.reserved.close()


def entries(root):
    return [name for name in os.listdir(root) if name.startswith("@net-")]


def spec_in(path):
    network = {"type": "network", "path": path}
    return types.SimpleNamespace(namespace=lambda kind: network if kind == "network" else None)


def found(root):
    return start.netns_entry(str(root), spec_in(f"/run/netns/{NAME}"))


def test_a_namespace_is_claimed_by_one_and_free_again_when_that_is_gone(netns):
    first = claim.take(netns)
    with pytest.raises(HostError, match="its network namespace is already used by another VM") as caught:
        claim.take(netns)
    assert caught.value.code == "network-in-use"
    first.close()
    claim.take(netns).close()


def test_a_claim_is_its_namespaces_and_not_the_hosts(netns):
    subprocess.run(["ip", "netns", "add", f"{NAME}b"], check=True, timeout=30)
    other = namespace.open_path(f"/run/netns/{NAME}b")
    try:
        with claim.take(netns), claim.take(other):
            with pytest.raises(HostError, match="already used by another VM"):
                claim.take(netns)  # which the other one did not free
            with pytest.raises(HostError, match="already used by another VM"):
                claim.take(other)
    finally:
        os.close(other)
        subprocess.run(["ip", "netns", "del", f"{NAME}b"], check=True, timeout=30)


def test_a_claim_ends_with_its_process(netns):
    program = "import sys; sys.path[:0] = [sys.argv[1]]; from bufferzone.network import claim, namespace;"
    program += "found = claim.take(namespace.open_path(sys.argv[2])); print('taken', flush=True); input()"
    source = os.path.dirname(os.path.dirname(os.path.dirname(claim.__file__)))
    argv = [sys.executable, "-c", program, source, f"/run/netns/{NAME}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"taken\n"
        with pytest.raises(HostError, match="its network namespace is already used by another VM"):
            claim.take(netns)
        holder.kill()
        holder.wait()
    claim.take(netns).close()


def test_of_many_that_race_one_gets_it(netns):
    won, lost = [], []
    go = threading.Barrier(8)

    def race():
        go.wait()
        try:
            won.append(claim.take(netns))
        except HostError as error:
            lost.append(error.code)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), lost) == (1, ["network-in-use"] * 7)
    won[0].close()


def test_the_last_container_lets_the_namespace_go(netns, shims, tmp_path):
    shim = shims("a")
    assert found(tmp_path) == ""
    shim.reserved.take(netns, joining=False)
    assert os.path.samefile(found(tmp_path), f"{shim.directory}/shim.sock")
    shim.reserved.take(netns, joining=True)
    assert not shim.reserved.drop(netns)
    assert found(tmp_path)
    shim.reserved.set_attached(netns)
    assert shim.reserved.is_attached(netns)
    assert shim.reserved.drop(netns)
    assert not shim.reserved.is_attached(netns)
    assert entries(tmp_path) == []
    claim.take(netns).close()


def test_what_joins_is_in_the_same_namespace_and_in_a_vm_that_runs(netns, shims, tmp_path):
    shim = shims("a")
    with pytest.raises(CallerError, match="is not that of the VM"):
        shim.reserved.take(netns, joining=True)
    shim.reserved.take(netns, joining=False)
    with pytest.raises(HostError, match="its network namespace is already used by another VM"):
        shims("b").reserved.take(netns, joining=False)
    shim.reserved.close()
    assert entries(tmp_path) == []
    with pytest.raises(StateError, match="its VM has ended"):
        shim.reserved.take(netns, joining=True)
    assert shim.reserved.drop(netns), "harmless"


def test_what_a_killed_shim_left_is_replaced_and_its_clean_up_leaves_the_new(netns, shims, tmp_path):
    dead = shims("dead")
    dead.reserved.take(netns, joining=False)
    dead.killed()
    entry = found(tmp_path)
    state.write_owner(dead.directory, os.getpid())
    assert join.join(state.create(str(tmp_path), "c"), entry, "") == 0
    assert not os.path.exists(tmp_path / "c" / "shim.sock")
    alive = shims("alive")
    alive.reserved.take(netns, joining=False)
    assert leftovers.clean(dead.directory) == []
    assert os.path.samefile(found(tmp_path), f"{alive.directory}/shim.sock")
    alive.killed()
    assert leftovers.clean(alive.directory) == []
    assert entries(tmp_path) == []


def test_a_verb_joins_the_shim_that_answers(netns, shims, tmp_path):
    shim = shims("a")
    shim.reserved.take(netns, joining=False)
    shim.serve()
    directory = state.create(str(tmp_path), "b")
    assert join.join(directory, found(tmp_path), "") == os.getpid()
    assert state.owner_pid(directory) == os.getpid()
    state.remove(shim.directory)
    assert os.path.samefile(found(tmp_path), f"{directory}/shim.sock"), "it outlives who was there first"


def test_a_shim_that_ends_while_it_is_asked_is_none(netns, shims, tmp_path):
    shim = shims("a")
    shim.reserved.take(netns, joining=False)
    threading.Thread(target=lambda: shim.listener.accept()[0].close(), daemon=True).start()
    directory = state.create(str(tmp_path), "b")
    assert join.join(directory, found(tmp_path), "") == 0
    assert os.listdir(directory) == ["owner"]
    assert join.join(directory, f"{tmp_path}/@net-4-1", "") == 0


def test_a_checkpoint_and_another_users_shim_are_not_joined(netns, shims, tmp_path, monkeypatch):
    shim = shims("a")
    shim.reserved.take(netns, joining=False)
    directory = state.create(str(tmp_path), "b")
    with pytest.raises(CallerError, match="a checkpoint cannot be restored into"):
        join.join(directory, found(tmp_path), "/saved")
    monkeypatch.setattr(join.Client, "peer", lambda self: (1, 4711))
    with pytest.raises(CallerError, match="of another user: uid 4711"):
        join.join(directory, found(tmp_path), "")
    assert os.listdir(directory) == ["owner"]


@pytest.mark.parametrize("path", ["", "/run/netns/none-such"])
def test_without_a_namespace_by_path_nobody_is_joined(tmp_path, path):
    assert start.netns_entry(str(tmp_path), spec_in(path)) == ""
    nothing = types.SimpleNamespace(namespace=lambda kind: None)
    assert start.netns_entry(str(tmp_path), nothing) == ""


def test_every_container_of_a_vm_knows_what_would_be_left(tmp_path):
    first, second = state.create(str(tmp_path), "a"), state.create(str(tmp_path), "b")
    left = leftovers.Leftovers(first)
    left.add_cgroups(["/one"])
    left.add_directory(second)
    left.add_cgroups(["/two"])
    assert state.read_leftovers(first) == state.read_leftovers(second)
    left.drop_directory(first)
    state.remove(first)
    left.drop_cgroups(["/two"])
    assert state.read_leftovers(second)["cgroups"] == ["/one"]
    left.drop_directory(second)
    left.add_cgroups(["/three"])
    assert state.read_leftovers(second)["cgroups"] == ["/one", "/three"], "the last one keeps it"


def test_a_name_that_stays_is_told_and_one_that_is_gone_is_not(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(log.DEBUG, log.SHIM)
    closed = []
    claimed = types.SimpleNamespace(close=lambda: closed.append(True))
    netns_owner._release(types.SimpleNamespace(path=str(tmp_path / "gone"), claimed=claimed))
    assert capfd.readouterr().err == ""
    netns_owner._release(types.SimpleNamespace(path=str(tmp_path), claimed=claimed))
    assert f"passed over: remove {tmp_path}" in capfd.readouterr().err
    assert closed == [True, True], "the namespace is let go in both"
