"""A process that waits in the pool without a VM. Its first argument says how it behaves when it is taken.

fine: as a real one. fail: says why and ends before it waits. refuse, late, die-after-go: ends, or does
nothing, at that point.
"""

from __future__ import annotations

import os
import signal
import socket
import sys


def main(mode: str) -> int:
    signal.alarm(60)
    control = socket.socket(fileno=3)
    if mode == "fail":
        control.send(b"there is no template of this shape yet")
        return 1
    control.send(b"waiting")
    data, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
    if not data:
        return 0
    caller = socket.socket(fileno=fds[0])
    caller.settimeout(120)  # it shares the flags that the keeper set
    if mode == "refuse":
        control.send(b"not what a start would make")
        return 1
    if mode == "late":
        signal.pause()
    caller.sendall(b"ready %d\n" % os.getpid())
    if caller.recv(8) != b"go\n":
        return 1
    if mode == "die-after-go":
        with open(os.path.join(sys.argv[2], "shim.sock"), "w"):
            return 1
    caller.sendall(b"listening\n")
    control.close()
    caller.close()
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
