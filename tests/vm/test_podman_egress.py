"""`podman run` with an egress policy as annotation: what passes, what is refused, what Podman says of a bad
one; and machines that lack what a network needs.
"""

from __future__ import annotations

import contextlib
import threading

import pytest

from unit import egress_world as world_of
from unit import hostile
from unit.egress_world import World
from vm.test_pool import Pool, made, pool, pooled_podman, watch

__all__ = ["made", "pool", "pooled_podman", "watch"]
POLICY = f"tcp:{hostile.OPEN4}:443"
CALLS = f"""
call() {{ echo question | nc -w 20 $1 $2 || echo refused $1 $2; }}
call {hostile.OPEN4} 443; call {hostile.OPEN4} 80; call {hostile.SHUT4} 443
"""
ANSWERS = ["answer to question", f"refused {hostile.OPEN4} 80", f"refused {hostile.SHUT4} 443"]


@pytest.fixture
def world():
    """A namespace with an interface, and servers outside that answer on every address."""
    world_of.need_what_it_takes()
    with World(vm=True) as made:
        for host in (hostile.OPEN4, hostile.SHUT4):
            for port in (80, 443):
                server = made.listen(made.outside, host, port)
                server.settimeout(None)
                threading.Thread(target=_answer, args=(server,), daemon=True).start()
        yield made


def _answer(server):
    with contextlib.suppress(OSError):
        while True:
            with server.accept()[0] as sock:
                sock.sendall(b"answer to " + sock.recv(100))


def words_of(world, policy):
    """Flags of `podman run`."""
    return ("--network", f"ns:{world.path}", "--annotation", f"bufferzone.egress={policy}")


def test_podman_run_with_a_policy_reaches_what_that_allows(podman, nothing_left, world):
    links = world.links()
    done = podman("run", "--rm", *words_of(world, POLICY), podman.image, "sh", "-c", CALLS)
    assert done.lines == ANSWERS
    assert world.links() == links


def test_podman_run_in_a_vm_that_waited_has_its_policy(pooled_podman, pool: Pool, world):
    podman = pooled_podman
    pool.start()
    pool.await_waiting()
    id = podman("run", "-d", *words_of(world, POLICY), podman.image, "sleep", "1000").text
    assert pool.begun(id) == "pool"
    assert podman("exec", id, "sh", "-c", CALLS).lines == ANSWERS
    podman("rm", "--force", "--time", "0", id)


@pytest.mark.parametrize("policy", ["tcp:example.com:443", "nonsense", "udp:[fd00::1:53"])
def test_podman_says_in_one_line_which_rule_does_not_parse(podman, nothing_left, world, policy):
    links = world.links()
    done = podman.any("run", "--rm", *words_of(world, policy), podman.image, "true")
    assert done.status != 0
    (line,) = [line for line in done.complaint.splitlines() if "egress" in line]
    assert f"config.json: annotations.bufferzone.egress: '{policy}': " in line
    assert world.links() == links
