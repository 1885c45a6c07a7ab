"""Work in a thread of its own that may change its namespaces: it ends with the work, and nobody has to find
the way back, which is closed to who is root of a user namespace.
"""

from __future__ import annotations

import threading

from bufferzone.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")


def run(work: Callable[[], Result]) -> Result:
    """Run `work` in a new thread and wait for it; raises what it raises."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def there() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=there, name="apart", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def in_mount_namespace(fd: int, work: Callable[[], Result]) -> Result:
    """Run `work` where paths mean what they mean in the mount namespace `fd`; raises what it raises, or
    OSError. Its own /proc entry there is /proc/thread-self. Source: setns(2), "may not share file system
    attributes".
    """

    def there() -> Result:
        process.unshare(process.CLONE_FS)
        process.setns(fd, process.CLONE_NEWNS)
        return work()

    return run(there)
