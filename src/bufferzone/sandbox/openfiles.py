"""Has a guest let go of files of the host before virtiofsd has as many open as it may.

virtiofsd keeps a descriptor for every file that the guest's kernel remembers. At its bound each look-up fails
with EMFILE, of what is known too, and a guest with free memory forgets nothing: its container could not even
run `cat` any more. So somebody looks how many are open, the more often the fewer are left, and asks the guest
to forget what nobody uses. What programs themselves have open stays: beyond the bound they get EMFILE.
Source: QEMU tools/virtiofsd/passthrough_ll.c (lo_do_lookup), drop_caches in Linux's sysctl/vm.rst.
"""

from __future__ import annotations

import os
import resource
import threading

from bufferzone import log
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: more files than a guest comes to know in a second, as measured: what is left lasts that long at least
_FASTEST = 20_000
_SOONEST_S, _LATEST_S = 0.1, 10.0
#: until it is asked again where asking did not help
_PAUSE_S = 5.0


class OpenFiles:
    """Of the virtiofsd `pid`, which may have `most` open. `forget` asks the guest, and waits; `say` is for
    the log.
    """

    def __init__(self, pid: int, most: int, forget: Callable[[], object], say: Callable[[str], None]) -> None:
        self._pid, self._most, self._forget, self._say = pid, most, forget, say
        self._asking: threading.Thread | None = None
        self._said: set[str] = set()

    def look(self) -> float:
        """Look, and do what is due; seconds until the next look."""
        try:
            count = open_files(self._pid)
        except OSError:
            return _LATEST_S  # it is gone, which others notice
        left = self._most * 3 // 4 - count
        if left > 0:
            return min(_LATEST_S, max(_SOONEST_S, left / _FASTEST))
        if self._asking is not None and not self._asking.is_alive():
            self._asking = None
            self._note("its programs themselves have them open: beyond, they get EMFILE (open_files)", count)
            return _PAUSE_S
        if self._asking is None:
            self._note("it forgets those that nobody uses", count)
            self._asking = threading.Thread(target=self._ask, name="forget files", daemon=True)
            self._asking.start()
        return _SOONEST_S

    def _ask(self) -> None:
        with log.passing_over("have the guest forget files", BufferzoneError):
            self._forget()

    def _note(self, what: str, count: int) -> None:
        """Once each: what a guest does can come often."""
        if what not in self._said:
            self._said.add(what)
            self._say(f"the VM has {count} files of the host open, of {self._most} that it may: {what}")


def allowed(wanted: int) -> int:
    """How many a helper may have open where a setting says `wanted`: no more than we may ourselves."""
    return min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def open_files(pid: int) -> int:
    """How many descriptors a process has; Linux 6.2 and later tell it by the size. Raises OSError."""
    place = f"/proc/{pid}/fd"
    return os.stat(place).st_size or len(os.listdir(place))
