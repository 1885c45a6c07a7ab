"""Work in another network namespace, done by a short-lived thread: this process stays where it is.

Never a fork: the shim has threads by then. Source: setns(2), network_namespaces(7).
"""

from __future__ import annotations

import os
import threading

from bufferzone.linux import process

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

    return _in_a_thread(there)


def _in_a_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread that changes its namespaces and ends: nobody has to find the way back, which is
    closed to who is root of a user namespace.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def fresh(work: Callable[[], Result]) -> tuple[int, Result]:
    """Run `work` in a new network namespace; its descriptor and the result."""

    def there() -> tuple[int, Result]:
        process.unshare(process.CLONE_NEWNET)
        result = work()
        return open_path("/proc/thread-self/ns/net"), result

    return _in_a_thread(there)


def open_path(path: str) -> int:
    """A descriptor of the namespace that `path` shows; raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def is_ours(fd: int) -> bool:
    """Whether it is the namespace this process is in."""
    return os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/net"))
