"""A guest that makes frames by hand, on passt's stream: what it reaches of the host, and what it does not.

The real passt, in a network namespace that stands for the host's: with an address, a default route, services
on all addresses, loopback among them, and a metadata service.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import socket
import struct
import threading

import pytest

from bufferzone.linux import process
from bufferzone.network import frame_filter, namespace, passt
from unit import frames
from vm.netns import World

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("passt") is None, reason="needs root, and passt: apt-get install passt"
)
UID = 2_000_065_001
GUEST, MAC = passt.ADDRESS, "02:62:7a:00:00:01"
HOST, METADATA, OUTSIDE = "10.213.7.2", "169.254.169.254", "10.213.7.1"
CLOSED = ("127.0.0.1", "127.1.2.3", "127.255.255.255", "0.0.0.0", METADATA, "224.0.0.1", "255.255.255.255",
          passt.GATEWAY)  # fmt: skip
WAIT_S = 20.0


class Host:
    """The namespace that stands for the host's: `tcp` and `udp` listen on every address, as does IPv6."""

    def __init__(self, world):
        self.world = world
        world.link("eth0", f"{HOST}/24")
        world.ip("route", "add", "default", "via", OUTSIDE)
        world.ip("address", "add", f"{METADATA}/32", "dev", "lo")
        self.fd = namespace.open_path(world.path)
        self.tcp, self.tcp6, self.udp = namespace.inside(self.fd, self._listen)

    def _listen(self):
        tcp = socket.create_server(("0.0.0.0", 0))
        tcp6 = socket.create_server(("::", tcp.getsockname()[1]), family=socket.AF_INET6)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("0.0.0.0", tcp.getsockname()[1]))
        for sock in (tcp, tcp6, udp):
            sock.setblocking(False)
        return tcp, tcp6, udp

    @property
    def port(self):
        return self.tcp.getsockname()[1]

    def reached(self):
        """What came in so far: (address called) of connections, the text of datagrams."""
        found = []
        for listener in (self.tcp, self.tcp6):
            with contextlib.suppress(BlockingIOError):
                while True:
                    with listener.accept()[0] as sock:
                        found.append(sock.getsockname()[0])
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.udp.recv(100).decode())
        return found

    def await_one(self):
        """What came in, once something has."""
        assert select.select([self.tcp, self.udp], [], [], WAIT_S)[0], "nothing came"
        return self.reached()

    def await_last(self, guest):
        """What came in up to a last call to the host's own address, which is open: passt keeps the order."""
        guest.call(HOST)
        came = []
        while not {HOST, f"to {HOST}"} <= set(came):
            came += self.await_one()
        return came

    def close(self):
        for sock in (self.tcp, self.tcp6, self.udp):
            sock.close()
        os.close(self.fd)


@pytest.fixture
def host():
    with World() as world, contextlib.closing(Host(world)) as host:
        yield host


@pytest.fixture
def connection(host, tmp_path):
    """passt in that namespace, and our end of the connection to it."""
    answers, ended = queue.Queue(), threading.Event()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    (tmp_path / "empty").mkdir()

    def live():  # passt ends with the thread that started it
        process.setns(host.fd, process.CLONE_NEWNET)
        try:
            answers.put(passt.start([], directory=str(tmp_path / "empty"), uid=UID, log_fd=log))
        except BaseException as error:
            answers.put(error)
        ended.wait()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        started = answers.get(timeout=WAIT_S)
        assert isinstance(started, tuple), started
        child, ours = started
        with ours:
            yield ours
        child.close()
    finally:
        ended.set()
        thread.join()
        os.close(log)


class Guest:
    """Who makes frames; `sock` leads to passt."""

    def __init__(self, sock, port):
        self.sock, self.port, self._from = sock, port, 40000

    def frame(self, kind, payload):
        frame = frames.ether("02:00:00:00:00:02", MAC, kind, payload)
        self.sock.sendall(struct.pack("!I", len(frame)) + frame)

    def call(self, destination, source=GUEST):
        """A SYN and a datagram that names the destination."""
        self._from += 1
        text = f"to {destination}".encode()
        for protocol, part in (
            (frames.TCP, frames.tcp(source, destination, self.port, 2, from_port=self._from)),
            (frames.UDP, frames.udp(source, destination, self.port, text, from_port=self._from)),
        ):
            self.frame(frames.IP, frames.ipv4(source, destination, protocol, part))

    def call6(self, destination, source="fd00::9"):
        syn = frames.tcp(source, destination, self.port, 2)
        self.frame(frames.IP6, frames.ipv6(source, destination, frames.TCP, syn))


@pytest.fixture
def guest(host, connection):
    """A guest behind the frame filter, as in a sandbox."""
    ours, theirs = socket.socketpair()
    between = frame_filter.FrameFilter(theirs, connection.dup(), GUEST)
    between.start()
    with ours:
        yield Guest(ours, host.port)
    between.close()


def test_passt_alone_would_let_a_forged_frame_reach_the_hosts_loopback(host, connection):
    guest = Guest(connection, host.port)
    guest.call("127.0.0.1")
    came = host.await_last(guest)
    if not {"127.0.0.1", "to 127.0.0.1"} & set(came):
        pytest.skip("this passt refuses by itself: the frame filter is one wall more")


def test_no_forged_frame_reaches_loopback_metadata_or_groups(host, guest):
    for destination in CLOSED:
        for source in (GUEST, "127.0.0.1", HOST, "0.0.0.0"):
            guest.call(destination, source)
    for destination in ("::1", "::ffff:127.0.0.1", "fe80::1"):
        guest.call6(destination)
    guest.call(HOST, source="10.0.2.101")
    came = host.await_last(guest)
    assert sorted(came) == [HOST, f"to {HOST}"]


def test_a_connection_to_elsewhere_passes_both_ways(host, guest):
    server = host.world.listen(OUTSIDE)
    guest.port = server.getsockname()[1]
    guest.call(OUTSIDE)
    server.settimeout(WAIT_S)
    server.accept()[0].close()
    guest.sock.settimeout(WAIT_S)
    assert guest.sock.recv(4)  # the frame with the answer


def test_a_frame_in_pieces_and_many_in_one_are_the_same(host, guest):
    here, there = socket.socketpair()
    with here, there:
        writer = Guest(here, host.port)
        for number in range(20):
            writer.call("127.0.0.1" if number % 2 else HOST)
        here.shutdown(socket.SHUT_WR)
        data, sock = b"", guest.sock
        while part := there.recv(1 << 16):
            data += part
    for begin in range(0, len(data) // 2, 7):
        sock.sendall(data[begin : min(begin + 7, len(data) // 2)])
    sock.sendall(data[len(data) // 2 :])
    came = []
    while len(came) < 20:
        came += host.await_one()
    assert sorted(set(came)) == [HOST, f"to {HOST}"]


@pytest.mark.parametrize("data", [bytes(4), b"\xff\xff\xff\xff", struct.pack("!I", frame_filter.MOST + 1)])
def test_what_is_no_stream_of_frames_ends_the_connection(host, guest, data):
    guest.sock.sendall(data)
    guest.sock.settimeout(WAIT_S)
    assert guest.sock.recv(1) == b""
