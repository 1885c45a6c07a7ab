"""nftables in the network namespace that the calling thread is in: load a ruleset, read the counters.

Through the `nft` program, which gets JSON on its standard input: no text is put together here. Called from a
thread that is in the namespace, and safe to be: posix_spawn, no fork. Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import os
import select
import signal

from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_PROGRAMS = ("/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft")
_WORDS_LIMIT = 1000
#: a large ruleset takes some 50 ms
_TIMEOUT_S = 20.0
_DEFAULTS = [signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def load(ruleset: dict[str, Any]) -> None:
    """Add all of `ruleset`, or nothing of it. Raises `HostError`."""
    _run(["-j", "-f", "-"], json.dumps(ruleset).encode())


def counters(table: str) -> dict[str, int]:
    """Packets counted by each named counter of the tables called `table`. Raises `HostError`."""
    found = json.loads(_run(["-j", "list", "counters"], b""))
    rows = [entry["counter"] for entry in found["nftables"] if "counter" in entry]
    return {row["name"]: int(row["packets"]) for row in rows if row["table"] == table}


def find_program() -> str:
    """The nft program; raises `HostError`."""
    for path in _PROGRAMS:
        if os.access(path, os.X_OK):
            return path
    raise HostError("egress: the program nft is missing", hint="apt-get install nftables", code="nft-missing")


def _run(arguments: Sequence[str], text: bytes) -> bytes:
    """What nft prints. Files and not pipes: nobody waits for a reader."""
    program = find_program()
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
    try:
        with open(files[0], "wb", closefd=False) as stdin:
            stdin.write(text)
        os.lseek(files[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
        pid = os.posix_spawn(
            program, ["nft", *arguments], {}, file_actions=actions, setsid=True, setsigdef=_DEFAULTS
        )
        status = _wait(pid)
        printed, said = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in files[1:])
    except OSError as error:
        raise HostError(f"egress: {program}: {error.strerror}", code="nft-failed") from error
    finally:
        for fd in files:
            os.close(fd)
    if status:
        words = " ".join(said[:_WORDS_LIMIT].decode("utf-8", "replace").split())
        raise HostError(
            f"egress: nft refuses the rules (status {status}): {words}",
            hint="the kernel needs nf_tables with inet, bridge and netdev tables, nft_ct and nft_reject",
            code="nft-failed",
        )
    return printed


def _wait(pid: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_TIMEOUT_S * 1000):
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
