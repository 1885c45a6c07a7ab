"""The answer that somebody waits for: what a container owes to whoever asked, given now or later."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from bufferzone.wire.proto import Message

    class Reply(Protocol):
        """The one answer that a request gets. A second answer is ignored."""

        @property
        def awaited(self) -> bool:
            """Whether there is somebody to answer now."""

        def ok(self, message: Message) -> None:
            """Answer with `message`."""

        def fail(self, error: BaseException) -> None:
            """Answer with an error."""
