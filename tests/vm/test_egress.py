"""An egress policy around a real VM whose root has every capability and uses it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from bufferzone.linux.capability_names import CAPABILITIES
from unit import egress_world as world_of
from unit import hostile
from unit.egress_world import World
from vm import private
from vm.verbs import Runtime, await_end, await_true, bundle, config, kill, listing, write_config

pytestmark = pytest.mark.vm

TESTS = Path(__file__).parents[1]
BZ = TESTS.parent / "bin" / "bz"


@pytest.fixture(scope="module")
def world():
    world_of.need_what_it_takes()
    with World(vm=True) as made:
        yield made


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    runtime = Runtime(tmp_path_factory.mktemp("egress") / "root")
    yield runtime
    runtime.close()


def described(world, command, policy):
    """config.json with every capability, in the world's namespace, under the policy of an annotation."""
    value = config(command)
    kinds = ("bounding", "effective", "permitted")
    value["process"]["capabilities"] = {kind: list(CAPABILITIES) for kind in kinds}
    value["annotations"] = {"bufferzone.egress": policy}
    namespaces = value["linux"]["namespaces"]
    value["linux"]["namespaces"] = [one for one in namespaces if one["type"] != "network"]
    value["linux"]["namespaces"].append({"type": "network", "path": world.path})
    return value


def serve(world):
    """Answers outside, as long as the test runs: TCP on 443 and 80, UDP on 53."""

    def accept(server):
        with contextlib.suppress(OSError):
            while True:
                with server.accept()[0] as sock:
                    sock.sendall(b"answer to " + sock.recv(100))

    def echo(server):
        with contextlib.suppress(OSError):
            while True:
                data, peer = server.recvfrom(100)
                server.sendto(b"answer to " + data, peer)

    for host in (hostile.OPEN4, hostile.OPEN6, hostile.SHUT4, hostile.SHUT6):
        for port in (80, 443):
            server = world.listen(world.outside, host, port)
            server.settimeout(None)
            threading.Thread(target=accept, args=(server,), daemon=True).start()
        server = world.udp(world.outside, host, 53)
        server.settimeout(None)
        threading.Thread(target=echo, args=(server,), daemon=True).start()


def qdiscs(world):
    """The container's traffic control, as `tc` lists it."""
    words = ["tc", "-n", world.path.rpartition("/")[2], "qdisc"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Attack:
    """What the attacker in the VM said and what came out meanwhile: `rows`, `frames`, the container."""

    def __init__(self, world, runtime, directory):
        self.world, self.runtime, self.rows, self.frames = world, runtime, [], []
        there, self.stdin = os.pipe()
        self._sniffer = world.frames(world.outside, "out")
        verb, self.container = runtime.begin_create("attacker", directory, stdin=there)
        os.close(there)
        assert verb.wait(120) == 0, self.container.errors()
        runtime.ok("start", "attacker")
        self._pending = b""
        self.until("sent")
        self.sniff(b"BZTAG%03d" % self.rows[-1]["sent"])

    def until(self, name):
        """Read its rows up to one with that name."""
        end = time.monotonic() + 180
        while not self.rows or name not in self.rows[-1]:
            assert select.select([self.container.out], [], [], end - time.monotonic())[0], self.rows
            data = os.read(self.container.out, 1 << 16)
            assert data, (self.rows, self.container.errors())
            *lines, self._pending = (self._pending + data).split(b"\n")
            self.rows += [json.loads(line) for line in lines]

    def sniff(self, marker):
        """Keep the frames that come out, up to one with the marker."""
        while not self.frames or marker not in self.frames[-1]:
            self.frames.append(self._sniffer.recv(65536))

    def sniff_rest(self):
        """Keep what came out by now."""
        self._sniffer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.frames.append(self._sniffer.recv(65536))

    def came(self, kind, host, port):
        (row,) = (row for row in self.rows if row.get(kind) == f"{host} {port}")
        return row

    def denied(self):
        """The column of `bz ps`."""
        words = [str(BZ), "--root", str(self.runtime.root), "ps"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=True)
        header, row = done.stdout.splitlines()
        return int(row[header.index("DENIED") :].split()[0])


@pytest.fixture(scope="module")
def attack(world, runtime, tmp_path_factory):
    serve(world)
    directory = bundle(tmp_path_factory.mktemp("attacker") / "bundle")
    for file in ("unit/frames.py", "unit/hostile.py", "vm/attacker.py"):
        shutil.copy(TESTS / file, directory / "rootfs")
    for name in ("lib", "lib64"):
        (directory / "rootfs" / name).symlink_to(f"usr/{name}")
    (directory / "rootfs" / "usr").mkdir()
    value = described(world, "exec /usr/bin/python3 -IS /attacker.py", " ".join(hostile.RULES))
    usr = {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}
    value["mounts"].append(usr)
    write_config(directory, value)
    made = Attack(world, runtime, directory)
    yield made
    os.close(made.stdin)


@pytest.mark.parametrize("host", [hostile.OPEN4, hostile.OPEN6])
def test_an_allowed_host_answers(attack, host):
    assert attack.came("call", host, 443)["came"] == "answer to question"


@pytest.mark.parametrize(
    ("host", "port"), [(hostile.OPEN4, 80), (hostile.SHUT4, 443), (hostile.OPEN6, 80), (hostile.SHUT6, 443)]
)
def test_a_denied_connection_is_reset(attack, host, port):
    row = attack.came("call", host, port)
    assert row["came"] == "ConnectionRefusedError"
    assert row["seconds"] < 10  # and not the minutes that a connection without an answer takes


def test_datagrams_are_answered_or_refused(attack):
    assert attack.came("send", hostile.OPEN4, 53)["came"] == "answer to question"
    assert attack.came("send", hostile.SHUT4, 53)["came"] == "No route to host"
    assert attack.came("send", hostile.SHUT6, 53)["came"] == "Permission denied"


def test_no_frame_made_by_hand_comes_out(attack):
    (sent,) = (row["sent"] for row in attack.rows if "sent" in row)
    assert sent > 70
    out = [number for number in range(sent) if any(b"BZTAG%03d" % number in f for f in attack.frames)]
    assert out == []


def test_who_calls_the_container_is_answered(attack):
    client = attack.world.connect(attack.world.outside, hostile.GUEST4, 8080)
    client.sendall(b"you")
    assert client.recv(100) == b"served you"


def test_bz_ps_counts_what_was_denied(attack):
    assert attack.denied() >= len(hostile.DENIED)
    found = attack.runtime.state("attacker")["annotations"]
    assert found["bufferzone.egress"] == " ".join(hostile.RULES)


def test_as_somebody_else_it_reaches_nothing(attack):
    os.write(attack.stdin, b"x")
    attack.until("became")
    attack.sniff_rest()
    assert not any(b"BZTAG998" in frame for frame in attack.frames)
    source = bytes.fromhex(hostile.OTHER_MAC.replace(":", ""))
    assert not any(frame[6:12] == source for frame in attack.frames)


def test_the_last_state_tells_the_counts_and_the_namespace_is_as_before(attack):
    attack.runtime.ok("kill", "attacker", "KILL")
    found = attack.runtime.await_status("attacker", "stopped")["annotations"]
    assert int(found["bufferzone.egress-denied"]) >= len(hostile.DENIED)
    assert int(found["bufferzone.egress-forged"]) >= len({**hostile.FORGED, **hostile.ENCAPSULATED})
    attack.runtime.ok("delete", "attacker")
    world = attack.world
    await_true(lambda: ": bz" not in world.links(), "the egress bridge's far end goes")
    assert "ingress" not in qdiscs(world)


def test_what_a_killed_shim_leaves_goes_with_delete(world, runtime, tmp_path):
    directory = bundle(tmp_path / "bundle")
    write_config(directory, described(world, "exec sleep 1000", "none"))
    links = world.links()
    container = runtime.run("killed", directory)
    kill(runtime.shim_pid("killed"))
    runtime.ok("delete", "--force", "killed")
    assert world.links() == links
    assert "ingress" not in qdiscs(world)
    await_end(container.pid)


@pytest.mark.parametrize("policy", ["tcp:example.com:443", "10.0.0.1/8", "none 10.0.0.0/8", ""])
def test_a_policy_that_does_not_parse_is_one_line_and_leaves_nothing(world, runtime, tmp_path, policy):
    directory = bundle(tmp_path / "bundle")
    write_config(directory, described(world, "true", policy))
    links = world.links()
    result = runtime.try_create("malformed", directory)
    assert result.status == 1
    assert "config.json: annotations.bufferzone.egress: " in result.line
    assert "malformed" not in listing(runtime.root)
    assert world.links() == links


def test_a_policy_wider_than_the_hosts_is_refused_and_leaves_nothing(world, tmp_path):
    settings = tmp_path / "config.toml"
    settings.write_text('egress = ["10.0.0.0/8"]')
    runtime = Runtime(tmp_path / "root", private.words(settings=str(settings)))
    directory = bundle(tmp_path / "bundle")
    write_config(directory, described(world, "true", "tcp:192.0.2.7:443"))
    result = runtime.try_create("wider", directory)
    assert result.status == 1
    assert "tcp:192.0.2.7:443 lies in none of this host's rules" in result.line
    assert "wider" not in listing(runtime.root)
