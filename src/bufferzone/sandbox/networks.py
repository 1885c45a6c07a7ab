"""What a sandbox asks of its network, as a protocol. Imported for types alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Network(Protocol):
    """How a VM's NICs lead somewhere. Thread-safe; `close` gives everything back."""

    @property
    def is_joined(self) -> bool:
        """Whether the guest has a network."""

    @property
    def helpers(self) -> tuple[tuple[str, int], ...]:
        """(role, pid) of the processes that make it."""

    @property
    def not_saveable(self) -> str:
        """Why a VM with this network cannot be saved; empty when it can."""

    def begin(self) -> None:
        """Called before a container's process runs; a network that lies in no namespace is told here."""

    def share_localhost(self) -> None:
        """Who calls 127.0.0.1 in the namespace is to reach the guest's: `kubectl port-forward`."""

    def prepare(self, fd: int, path: str) -> None:
        """A head start on `attach`, whose failures are of no consequence."""

    def attach(self, fd: int, path: str) -> None:
        """Make the interfaces that are in the namespace `fd` now the VM's; `path` is where the namespace may
        be found later, empty if it goes with the container. Raises `HostError`, `GuestError` or `VmmError`.
        """

    def leave(self, fd: int) -> None:
        """The container of the namespace `fd` is gone."""

    def withdrawn(self) -> AbstractContextManager[None]:
        """While entered, no NIC of the guest has a driver."""

    def refused(self) -> dict[str, int]:
        """Packets that the egress policy refused, by reason; empty where there is none."""

    def close(self) -> None:
        """Take the interfaces and the VM apart, for good."""
