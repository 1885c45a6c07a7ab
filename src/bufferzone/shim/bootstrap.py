"""What containerd tells a shim's `start` on standard input, and in which form it takes the answer.

| containerd | standard input | answer |
|---|---|---|
| to 2.2, CRI-O | the runtime's options (google.protobuf.Any), or nothing | the plain address: Task API v2 |
| from 2.3 | BootstrapParams | BootstrapResult: Task API v3 |

A plain address is understood by all of them. The two messages on standard input have the same shape, so what
the command line says tells them apart. Nothing is refused here: options are not ours to check.
Source: containerd api/runtime/bootstrap/v1/bootstrap.proto, docs/runtime-v2.md.
"""

from __future__ import annotations

import os

from bufferzone.wire.proto import DecodeError, Message, sint, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.shim.arguments import Arguments

_VERSION, _PROTOCOL = 3, "ttrpc"


class BootstrapParams(Message):
    instance_id: str = string(1)
    namespace: str = string(2)
    containerd_ttrpc_address: str = string(5)


class BootstrapResult(Message):
    version: int = sint(1)
    address: str = string(2)
    protocol: str = string(3)


class Caller:
    """Who called `start`, known by what it wrote. Where events go is the environment's to say, else its."""

    def __init__(self, stdin: bytes, arguments: Arguments) -> None:
        try:
            params = BootstrapParams.decode(stdin)
        except DecodeError:
            params = BootstrapParams()
        names = (params.instance_id, params.namespace)
        self._takes_result = bool(arguments.id) and names == (arguments.id, arguments.namespace)
        if self._takes_result and params.containerd_ttrpc_address:
            os.environ.setdefault("TTRPC_ADDRESS", params.containerd_ttrpc_address)

    def answer(self, path: str) -> bytes:
        """What goes to standard output: that the shim listens at `path`."""
        address = f"unix://{path}"
        if not self._takes_result:
            return address.encode()
        return BootstrapResult(version=_VERSION, address=address, protocol=_PROTOCOL).encode()
