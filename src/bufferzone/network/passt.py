"""passt: a network for a VM without any right on the host. Its connections are ordinary sockets of the host.

QEMU and passt talk over a stream socket pair: each Ethernet frame after its length in 32 bits. passt leaves
for namespaces of its own and loads an allow-list of system calls before it serves. Around that is our jail,
in the host's network namespace since its sockets have to be there. Refuses: the host's loopback by way of the
gateway, DHCP and IPv6 (the agent configures the guest).

Source: passt(1), version 0.0~git20230309 of Debian 12 and later.
"""

from __future__ import annotations

import os
import socket

from bufferzone import allowlists, jail, programs
from bufferzone.errors import HostError
from bufferzone.linux import landlock
from bufferzone.network import frame_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.oci.ports import Port
    from bufferzone.spawn import Child

#: what the guest has: RFC 1918, as slirp4netns and QEMU's own user network
ADDRESS, GATEWAY, PREFIX = "10.0.2.100", "10.0.2.2", 24
#: what passt takes: 64 KiB less headers, rounded down to 32 bits
MTU = 65520
_PLACES = ("/usr/bin", "/usr/local/bin")


def find_program() -> str:
    """The passt of this machine, the build for AVX2 where the CPU has that; raises HostError."""
    path = programs.find("passt", _PLACES)
    if not path:
        raise HostError("program not found: passt", hint="apt-get install passt", code="passt-missing")
    fast = f"{path}.avx2"
    return fast if os.access(fast, os.X_OK) and _has_avx2() else path


def _has_avx2() -> bool:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return any(line.startswith("flags") and " avx2" in line for line in file)


def argv(program: str, fd: int, ports: Sequence[Port]) -> list[str]:
    """The command line; `fd` is passt's end of the socket pair."""
    words = [program, "--foreground", "--stderr", "--quiet", "--fd", str(fd), "--ipv4-only", "--no-dhcp"]
    words += ["--address", ADDRESS, "--netmask", str(PREFIX), "--gateway", GATEWAY, "--no-map-gw"]
    words += ["--mtu", str(MTU)]
    for port in ports:
        bound = f"{port.address}/" if port.address else ""
        words += [f"--{port.protocol}-ports", f"{bound}{port.host}:{port.guest}"]
    return words


def describe_jail(
    program: str, ports: Sequence[Port], *, uid: int, fd: int, empty: int, log_fd: int
) -> jail.Jail:
    """passt's jail; `empty` is the descriptor of an empty directory, on which passt builds its root. So files
    are no matter of Landlock's: who may not write all of them may not mount either.
    """
    libraries, links = jail.library_view()
    return jail.Jail(
        name="passt",
        uid=uid,
        gid=uid,
        log_fd=log_fd,
        calls=allowlists.PASST,
        keep_fds=(fd,),
        binds=(
            *libraries,
            jail.JailBind(source=program, target=program),
            jail.JailBind(source=empty, target="/tmp"),
        ),
        # it looks there for the name of its build for AVX2
        links=(*links, (f"{jail.OWN_PROC}/exe", program)),
        # whether it is in the first user namespace: the one of Debian 13 does not start without the answer
        own_proc=("uid_map",),
        devices=("null", "urandom"),
        namespaces=("ipc", "uts", "pid"),
        restricted=landlock.Rules(
            writable=None, ports=tuple(port.host for port in ports if port.protocol == "tcp")
        ),
    )


def start(ports: Sequence[Port], *, directory: str, uid: int, log_fd: int) -> tuple[Child, socket.socket]:
    """Start passt; it and the VMM's end of the connection, with which it ends. Raises HostError.

    `directory` is an empty one. That a port cannot be bound is seen by passt ending, after this.
    """
    program = find_program()
    ours, theirs = frame_filter.pair()
    empty = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with theirs:
            fd = theirs.fileno()
            confined = describe_jail(program, ports, uid=uid, fd=fd, empty=empty, log_fd=log_fd)
            return jail.start(argv(program, fd, ports), confined), ours
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(empty)
