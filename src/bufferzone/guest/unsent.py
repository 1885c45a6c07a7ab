"""What the kernel has to send yet for processes that have ended: TCP connections that nobody holds any more.

A process that writes and ends has done its part; on a host the kernel does the rest, whatever became of the
process (tcp(7), close(2)). A VM that is ended takes its kernel along.
"""

from __future__ import annotations

_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
#: TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_CLOSING of include/net/tcp_states.h: our FIN, the last of what we send,
#: has not been acknowledged
_SENDING = (b"04", b"09", b"0B")
_STATE = 3  # "sl local_address rem_address st ..."


def count() -> int:
    """Such connections in the network namespace of the VM. Raises OSError."""
    found = 0
    for path in _TABLES:
        try:
            with open(path, "rb") as file:
                found += sum(
                    line.split(None, _STATE + 1)[_STATE] in _SENDING for line in file.readlines()[1:]
                )
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return found
