"""The three socket pairs between us and QEMU: agent, console, control."""

from __future__ import annotations

import socket

from bufferzone.vmm.qemu.command_line import Ends


class Channels:
    """Our ends are `agent`, `console` and `control`; `ends` are the descriptors of QEMU's."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        (self.agent, self._agent), (self.console, self._console), (self.control, self._control) = pairs
        self.ends = Ends(
            agent=self._agent.fileno(), console=self._console.fileno(), control=self._control.fileno()
        )

    def close_remote(self) -> None:
        """Close our copies of QEMU's ends, so that its death is seen as end of file."""
        for end in (self._agent, self._console, self._control):
            end.close()

    def close(self) -> None:
        """Close all; nobody has taken anything over."""
        self.close_remote()
        for end in (self.agent, self.console, self.control):
            end.close()
