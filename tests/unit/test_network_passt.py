"""passt: its command line, its jail with the real program, ports as the settings name them."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.network import passt
from bufferzone.oci import ports
from bufferzone.sandbox import user_network

needs_passt = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("passt") is None, reason="needs root, and passt: apt-get install passt"
)
UID = 2_000_065_000


def test_the_command_line_of_passt_is_exactly_this():
    words = passt.argv("/usr/bin/passt", 7, [ports.parse("127.0.0.1:8080:80"), ports.parse("53:5353/udp")])
    assert " ".join(words) == (
        "/usr/bin/passt --foreground --stderr --quiet --fd 7 --ipv4-only --no-dhcp --address 10.0.2.100"
        " --netmask 24 --gateway 10.0.2.2 --no-map-gw --mtu 65520"
        " --tcp-ports 127.0.0.1/8080:80 --udp-ports 53:5353"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "0:80",
        "80:65536",
        "80:80/icmp",
        "a:80:80",
        "1.2.3:80:80",
        "::1:80:80",
        "80:-1",
        "80:80/tcp/udp",
    ],
)
def test_what_is_no_port_is_said_to_be_none(text):
    with pytest.raises(ValueError, match=r"ports 1 to 65535|neither /tcp nor /udp|not an IPv4 address"):
        ports.parse(text)


def test_a_port_has_an_address_both_numbers_and_a_protocol():
    port = ports.parse("192.0.2.1:8080:80/udp")
    assert (port.address, port.host, port.guest, port.protocol) == ("192.0.2.1", 8080, 80, "udp")
    assert ports.parse("1:2").protocol == "tcp"


def test_the_guest_gets_one_address_and_a_default_route():
    interface = user_network.interface()
    assert [socket.inet_ntoa(row.local) for row in interface.addresses] == ["10.0.2.100"]
    assert [socket.inet_ntoa(row.gateway) for row in interface.routes if row.gateway] == ["10.0.2.2"]


@pytest.fixture
def started(tmp_path):
    """passt, and a function that starts it."""
    children = []

    def start(*texts):
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        (tmp_path / "empty").mkdir(exist_ok=True)
        wishes = [ports.parse(text) for text in texts]
        child, ours = passt.start(wishes, directory=str(tmp_path / "empty"), uid=UID, log_fd=log)
        os.close(log)
        children.append((child, ours))
        return child, ours

    yield start
    for child, ours in children:
        ours.close()
        child.close()


@needs_passt
def test_passt_runs_without_rights_in_namespaces_of_its_own(started):
    child, _ = started()
    assert child.wait_exit(1.0) is None
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in status
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp_filters:\t3" in status  # ours and its own
    for kind in ("mnt", "ipc", "uts", "user", "pid"):
        ours, its = (os.readlink(f"/proc/{pid}/ns/{kind}") for pid in ("self", child.pid))
        assert ours != its, kind
    assert os.listdir(f"/proc/{child.pid}/root") == []


@needs_passt
def test_passt_ends_with_its_connection(started):
    child, ours = started()
    assert child.wait_exit(0.5) is None
    ours.close()
    assert child.wait_exit(10) == 0


@needs_passt
def test_a_port_that_is_taken_is_named(started, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child, _ = started(f"127.0.0.1:{port}:80")
        assert child.wait_exit(10) == 1
    assert f"127.0.0.1/{port}:80" in (tmp_path / "log").read_text()


def test_a_missing_passt_is_said_with_its_package(monkeypatch):
    monkeypatch.setattr(passt, "_PLACES", ("/nonexistent",))
    with pytest.raises(HostError, match="program not found: passt") as caught:
        passt.find_program()
    assert "apt-get install passt" in caught.value.hint
