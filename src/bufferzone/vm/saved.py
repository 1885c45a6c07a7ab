"""What a VM can be restored from, as a protocol. Imported for types alone."""

from __future__ import annotations

from typing import Protocol


class SavedVm(Protocol):
    """Open files of a VM that was saved: a template or a checkpoint."""

    @property
    def noun(self) -> str:
        """`template` or `checkpoint`."""

    @property
    def memory_fd(self) -> int:
        """The guest's memory, a sparse file."""

    @property
    def is_mappable(self) -> bool:
        """Whether a VMM of any user may map that file: it stays as it is, and was looked at."""

    @property
    def state_fd(self) -> int:
        """The VMM's devices."""

    @property
    def disk_fd(self) -> int:
        """The image that its disk slot had; -1: none."""

    @property
    def carries_share(self) -> bool:
        """Whether the guest has the device of its share, not mounted."""

    def check_memory(self, fd: int) -> None:
        """Raise `HostError` unless the copy of the memory behind `fd` is what was saved."""
