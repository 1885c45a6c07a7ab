"""An agent that was taken over: it lies, floods, stalls and forges, and the real shim is in front of it.

The agent is ours but for one trick, which it plays from the moment its container runs. Three things are seen
each time: the sandbox ends with a reason (or goes on where the lie harms nobody but itself), the shim's
memory stays bounded, and the sandbox beside it notices nothing.
"""

from __future__ import annotations

import pytest

from bufferzone import state
from flow.cli import DEADLINE_S, Cli, needs_host
from vm.leftovers import is_alive
from vm.verbs import await_true

pytestmark = needs_host

#: what a shim may take at most beyond what it had; a frame has 4 MiB at most
_MOST_MIB = 48
#: `trick(method, request, reply)` is asked before our own handler, which answers where it gives `OURS`;
#: `raw(bytes)` writes to the channel past every queue; `started()` says whether the container runs
_AGENT = """
import os, sys, threading, time
sys.path.insert(0, sys.argv.pop(1))
from bufferzone.errors import GuestError
from bufferzone.guest import hosted, server
from bufferzone.wire import agent as wire, ttrpc
from bufferzone.wire.proto import Empty

OURS = object()
runs = []

def raw(data):
    os.set_blocking(agent_fd, True)
    view = memoryview(data)
    while view:
        view = view[os.write(agent_fd, view):]

def answer(stream, message):
    return ttrpc.encode_frame(stream, ttrpc.RESPONSE, ttrpc.Response(payload=message.encode()).encode())

def later(work):
    threading.Thread(target=work, daemon=True).start()

{trick}

real = server.Server.__init__

def init(self, loop, fd, handle, **how):
    def odd(method, request, reply):
        if method == "Start":
            runs.append(True)
        found = trick(method, request, reply) if runs else OURS
        return handle(method, request, reply) if found is OURS else found
    real(self, loop, fd, odd, **how)

server.Server.__init__ = init
hosted.main()
"""
#: name -> the trick, and words of the reason with which the sandbox ends
ENDS = {
    "answers to no request": (
        """
def trick(method, request, reply):
    if method == "Stats":
        raw(b"".join(answer(stream, Empty()) for stream in range(100001, 101001, 2)))
    return OURS
""",
        "answer to no request",
    ),
    "a frame of 4 GiB": (
        """
def trick(method, request, reply):
    if method == "Stats":
        raw(b"\\xff\\xff\\xff\\xff" + (1).to_bytes(4, "big") + b"\\x02\\x00" + bytes(1 << 16))
    return OURS
""",
        "agent",
    ),
    "a request of its own": (
        """
def trick(method, request, reply):
    if method == "Stats":
        payload = ttrpc.Request(service="x", method="Exec", payload=b"").encode()
        raw(ttrpc.encode_frame(1, ttrpc.REQUEST, payload))
    return OURS
""",
        "agent",
    ),
    "random bytes": (
        """
def trick(method, request, reply):
    if method == "Stats":
        raw(os.urandom(1 << 20))
    return OURS
""",
        "agent",
    ),
    "its end, in the middle of a frame": (
        """
def trick(method, request, reply):
    if method == "Stats":
        raw((1000).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"\\x02\\x00" + b"x")
        os._exit(0)
    return OURS
""",
        "powered off",
    ),
    "a channel that it closes": (
        """
def trick(method, request, reply):
    if method == "Stats":
        import socket
        socket.socket(fileno=os.dup(agent_fd)).shutdown(2)
        time.sleep(1000)
    return OURS
""",
        "agent",
    ),
}
#: name -> the trick, of which the sandbox need not end
GOES_ON = {
    "output without end": """
def trick(method, request, reply):
    return wire.ReadResponse(data=b"x" * (64 << 10)) if method == "Read" else OURS
""",
    "OOM kills of containers that it invents": """
def trick(method, request, reply):
    if method == "WaitOom":
        return wire.OomEvents(ids=["two", "../../etc", "\\x1b]0;x"] + [str(n) for n in range(20000)])
    return OURS
""",
    "an error without end": """
def trick(method, request, reply):
    if method == "Stats":
        raise GuestError("\\x1b[31m\\n" + "y" * (1 << 20), hint="z" * (1 << 20))
    return OURS
""",
    "counters that are none": """
def trick(method, request, reply):
    return wire.UsageResponse() if method in ("Stats", "Usage") else OURS
""",
    "processes without end": """
def trick(method, request, reply):
    return wire.PidsResponse(pids=list(range(1, 60000))) if method == "Pids" else OURS
""",
}


@pytest.fixture
def bz(tmp_path):
    made = Cli(tmp_path)
    yield made
    made.close()


def most_mib(pid):
    """The most memory that a process had so far."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return int(next(line for line in file if line.startswith("VmHWM:")).split()[1]) / 1024


def shim_of(bz, id):
    return state.owner_pid(str(bz.root / id))


class World:
    """The sandbox `two` with our agent, and `one` with one that plays a trick; both run."""

    def __init__(self, bz, trick):
        self.bz = bz
        bz.create("two", bz.bundle("pause", name="second"))
        bz("start", "two")
        bz.odd_agent(_AGENT.format(trick=trick))
        bz.create("one", bz.bundle("pause"))
        self.shim = shim_of(bz, "one")
        self.before = most_mib(self.shim)
        bz("start", "one")

    def assert_bounded_and_alone(self):
        if is_alive(self.shim):
            assert most_mib(self.shim) - self.before < _MOST_MIB
        assert self.bz("exec", "two", "echo", "on").stdout == "on\n"
        assert self.bz.state("two")["status"] == "running"

    def assert_gone(self):
        self.bz("delete", "--force", "one")
        assert "one" not in self.bz.left()
        assert not is_alive(self.shim) or await_true(lambda: not is_alive(self.shim), "the shim's end")


@pytest.mark.parametrize("name", ENDS)
def test_nonsense_on_the_channel_ends_the_sandbox_with_a_reason(bz, name):
    trick, words = ENDS[name]
    world = World(bz, trick)
    said = bz("events", "--stats", "one", check=None)
    assert said.returncode != 0
    assert said.stderr.count("\n") <= 1
    await_true(lambda: bz.state("one")["status"] == "stopped", "its end", DEADLINE_S)
    log = (bz.root / "one" / "shim.log").read_text()
    assert words in log
    assert all(line.isprintable() for line in log.splitlines())
    assert words in bz.state("one")["annotations"]["bufferzone.failure"]
    world.assert_bounded_and_alone()
    world.assert_gone()


@pytest.mark.parametrize("name", GOES_ON)
def test_a_lie_that_harms_nobody_costs_nobody(bz, name):
    world = World(bz, GOES_ON[name])
    for words in (["events", "--stats", "one"], ["ps", "one"], ["state", "one"]):
        done = bz(*words, check=None)
        assert len(done.stderr) < 10_000
        assert "\x1b" not in done.stderr + done.stdout
    world.assert_bounded_and_alone()
    world.assert_gone()


def test_an_exit_that_is_forged_ends_the_container_and_what_ran_in_it(bz):
    trick = """
def trick(method, request, reply):
    return wire.WaitResponse(exit_status=0) if method == "Wait" else OURS
"""
    world = World(bz, trick.replace('if method == "Wait"', 'if method in ("Wait", "Stats")'))
    bz("events", "--stats", "one", check=None)
    world.assert_bounded_and_alone()
    world.assert_gone()


@pytest.mark.parametrize("status", [256, 4294967295, 1 << 40])
def test_a_status_that_is_none_is_told_as_one(bz, status, tmp_path):
    trick = f"""
def trick(method, request, reply):
    return wire.WaitResponse(exit_status={status}, exited_at_ns=-(1 << 62)) if method == "Wait" else OURS
"""
    world = World(bz, trick)
    done = bz("exec", "one", "true", check=None)
    assert 0 <= done.returncode <= 255
    world.assert_bounded_and_alone()
    world.assert_gone()


def test_a_kill_that_is_not_carried_out_ends_the_vm(bz):
    trick = """
def trick(method, request, reply):
    return Empty() if method == "Signal" else OURS
"""
    world = World(bz, trick)
    agent = bz.helper("one")
    bz("kill", "one", "KILL")
    await_true(lambda: bz.state("one")["status"] == "stopped", "its end", DEADLINE_S)
    assert "did not end the container within 10 s of SIGKILL" in (bz.root / "one" / "shim.log").read_text()
    await_true(lambda: not is_alive(agent), "the end of its VM", DEADLINE_S)
    world.assert_bounded_and_alone()
    world.assert_gone()


def test_an_agent_that_reads_and_answers_nothing_holds_nobody_up_for_good(bz):
    trick = """
def trick(method, request, reply):
    if method == "Stats":
        time.sleep(1000)
    return OURS
"""
    world = World(bz, trick)
    asking = bz.start("events", "--stats", "one")
    world.assert_bounded_and_alone()
    bz("delete", "--force", "one")
    asking.communicate(timeout=DEADLINE_S)
    assert "one" not in bz.left()
    world.assert_bounded_and_alone()
