"""Tells when something changes in a network namespace: an interface, an address, a route, a neighbour.

What it is that changed is not told, nor kept: whoever hears of it looks. Changes come in bursts and are told
once it is quiet; however often a host changes its mind, nobody is called more than a few times a second.
What the kernel has no room to tell is one more change.

Source: rtnetlink(7).
"""

from __future__ import annotations

import os
import select
import threading

from bufferzone import log
from bufferzone.linux.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
#: a burst ends when it was quiet for so long; one that goes on is looked at after so many changes
_QUIET_S, _MOST = 0.05, 256
#: between two looks, also of a namespace that changes all the time
_REST_S = 0.25


class Watch:
    """Listens from its making on, which takes place in the namespace (`namespace.inside`); raises OSError.

    `start` gives it a thread that calls; `stop` may be called by anybody, and does not wait for it.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(groups=_GROUPS)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)  # not a pipe, whose end a fork would keep open
        self._lock = threading.Lock()
        self._stopped = self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, changed: Callable[[], None]) -> None:
        """Call `changed` from a thread of its own after each burst of changes; again is harmless."""
        if self._thread is None:
            run, name = self._run, "network changes"
            self._thread = threading.Thread(target=run, args=(changed,), name=name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Let go; a call that has begun goes on to its end. Again is harmless."""
        with self._lock:
            self._stopped = True
            if not self._closed:
                os.eventfd_write(self._stop_fd, 1)
        if self._thread is None:
            self._close()

    def _run(self, changed: Callable[[], None]) -> None:
        try:
            while self._hears(None):
                left = _MOST
                while left and self._hears(_QUIET_S):
                    left -= 1
                if self._stopped:
                    return
                self._tell(changed)
                if select.select([self._stop_fd], [], [], _REST_S)[0]:
                    return
        except OSError as error:
            log.say(f"changes of the network are not followed any more: {log.line_of(error)}")
        finally:
            self._close()

    def _tell(self, changed: Callable[[], None]) -> None:
        try:
            changed()
        except Exception as error:  # the boundary of this thread: the next change is told all the same
            log.say(f"a change of the network was not followed: {log.line_of(error)}")

    def _hears(self, timeout_s: float | None) -> bool:
        """Whether there was a change in this time, and nobody stopped it."""
        ready = select.select([self._netlink.fileno(), self._stop_fd], [], [], timeout_s)[0]
        return bool(ready) and self._stop_fd not in ready and self._netlink.await_message(1.0)

    def _close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._netlink.close()
                os.close(self._stop_fd)
