"""Work in another network namespace, done by a short-lived thread: this process stays where it is.

Never a fork: the shim has threads by then. Source: setns(2), network_namespaces(7).
"""

from __future__ import annotations

import os

from bufferzone.linux import apart, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")


def inside(fd: int, work: Callable[[], Result]) -> Result:
    """Run `work` in the network namespace that `fd` stands for; raises what it raises, or OSError."""

    def there() -> Result:
        process.setns(fd, process.CLONE_NEWNET)
        return work()

    return apart.run(there)


def fresh(work: Callable[[], Result]) -> tuple[int, Result]:
    """Run `work` in a new network namespace; its descriptor and the result."""

    def there() -> tuple[int, Result]:
        process.unshare(process.CLONE_NEWNET)
        result = work()
        return open_path("/proc/thread-self/ns/net"), result

    return apart.run(there)


def open_path(path: str) -> int:
    """A descriptor of the namespace that `path` shows; raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def is_ours(fd: int) -> bool:
    """Whether it is the namespace this process is in."""
    return os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/net"))
