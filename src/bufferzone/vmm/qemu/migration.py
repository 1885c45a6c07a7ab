"""Saving a stopped VM and loading it into a fresh QEMU, over the control channel.

Guest memory lies in a shared file that is not part of the stream (x-ignore-shared): the stream holds the
devices. A vhost-user device cannot be in it on QEMU 7.2 ("non-migratable device"), so shares are plugged
after loading, before the guest runs. From QEMU 8.2 on it can, with a virtiofsd that hands its state over
(1.11): VHOST_USER_PROTOCOL_F_DEVICE_STATE in QEMU's docs/interop/vhost-user.rst. Source for the rest: QEMU
7.2 docs/devel/migration.rst, qapi/migration.json.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import contextmanager

from bufferzone.errors import VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bufferzone.vmm.qemu.qmp import Qmp

_CAPABILITIES = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
_TRIES = 20_000
#: what the guest keeps while its balloon is full: enough that nothing there fails to allocate
_KEPT_FREE = 24 << 20
_BALLOON_TRIES = 50
#: devices take 250 KB to 1 MB; a QEMU that its guest took over shall not fill the disk
_MOST_STATE = 64 << 20
_LAST_BYTES_S = 10.0
#: from this version on `fd:` takes sockets and pipes alone; `file:`, there since 8.2, is for files. Source:
#: QEMU 9.1, docs/about/deprecated.rst
_NO_FILES_BY_FD = 11
#: the set of descriptors that the file is in; a disk's image has another one, see `plugging`
_STATE_SET = 2


@contextmanager
def squeezed(qmp: Qmp, *, memory: int, free: int) -> Iterator[None]:
    """Take `free` bytes of the guest's `memory` out of the memory file: the balloon is full in the block.

    Page reporting would do it by itself, but in blocks of 2 MiB and a sixteenth of them every two seconds.
    A guest that takes too long gets its memory back early. Raises `VmmError`.
    """
    wanted = memory - max(0, free - _KEPT_FREE)
    qmp.execute("balloon", {"value": wanted})
    _await_balloon(qmp, wanted)
    yield
    qmp.execute("balloon", {"value": memory})
    _await_balloon(qmp, memory)


def _await_balloon(qmp: Qmp, target: int) -> None:
    """Wait until the balloon has reached `target`, or has not moved for a while."""
    before, still = -1, 0
    while still < _BALLOON_TRIES:
        actual = qmp.execute("query-balloon").get("actual")
        if actual == target:
            return
        before, still = (actual, still + 1) if actual == before else (actual, 0)
        select.select([], [], [], 0.02)


def save(qmp: Qmp, state_fd: int, last_words: Callable[[], list[str]]) -> None:
    """Write a stopped guest's devices to `state_fd`; the memory file holds the rest. Raises `VmmError`, with
    QEMU's `last_words`, or OSError when `state_fd` does not take them.

    QEMU gets a pipe and never the file: how much is written is decided here.
    """
    qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    drain = Drain(state_fd, _MOST_STATE)
    try:
        qmp.send_descriptor("state", drain.write_end)
        drain.close_write_end()
        qmp.execute("migrate", {"uri": "fd:state"})
        _await_migration(qmp, last_words, "save its devices")
        drain.finish(_LAST_BYTES_S)
    except VmmError:
        drain.stop()
        if drain.error is not None:  # why QEMU could not write
            raise drain.error from None
        raise
    finally:
        drain.stop()


class Drain:
    """A pipe whose bytes a thread copies to `target_fd`, at most `most`; then its reader is closed.

    `write_end` is given to the writer and closed here. `error` tells what ended the copying early.
    """

    def __init__(self, target_fd: int, most: int) -> None:
        self._target, self._most = target_fd, most
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._stopped = os.eventfd(0, os.EFD_CLOEXEC)
        self.error: VmmError | OSError | None = None
        self._thread = threading.Thread(target=self._copy, name="drain", daemon=True)
        self._thread.start()

    def close_write_end(self) -> None:
        """Close ours, so that the writer's closing is the end. May be called twice."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def finish(self, timeout_s: float) -> None:
        """Wait for the writer's last byte; raises `VmmError` or OSError when not all of it arrived."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise VmmError("QEMU's device state stream does not end", code="save-failed")
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Give everything back. May be called twice."""
        self.close_write_end()
        if self._stopped >= 0:
            os.eventfd_write(self._stopped, 1)
            self._thread.join()
            os.close(self._stopped)
            self._stopped = -1

    def _copy(self) -> None:
        poll = select.poll()
        for fd in (self._read_end, self._stopped):
            poll.register(fd, select.POLLIN)
        done = 0
        try:
            while self._stopped not in (ready := [fd for fd, _ in poll.poll()]):
                data = os.read(ready[0], 1 << 16)
                if not data:
                    return
                done += len(data)
                if done > self._most:
                    raise VmmError(
                        f"QEMU's device state is larger than {self._most >> 20} MiB", code="save-failed"
                    )
                view = memoryview(data)
                while view:
                    view = view[os.write(self._target, view) :]
        except (VmmError, OSError) as error:
            self.error = error
        finally:
            os.close(self._read_end)


def load(qmp: Qmp, state_fd: int, last_words: Callable[[], list[str]]) -> None:
    """Load devices from `state_fd` into a QEMU that was started to be restored; it does not run yet."""
    qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    # a NIC that was moved would tell its network of its MAC, which here is a template's
    qmp.execute("migrate-set-parameters", {"announce-rounds": 0})
    with _given(qmp, state_fd) as uri:
        qmp.execute("migrate-incoming", {"uri": uri})
        _await_migration(qmp, last_words, "restore from the template")


@contextmanager
def _given(qmp: Qmp, state_fd: int) -> Iterator[str]:
    """While entered, QEMU has the file that it shall load, from its present position on; yields its URI."""
    if qmp.major < _NO_FILES_BY_FD:
        qmp.send_descriptor("state", state_fd)
        yield "fd:state"  # which closes it
        return
    qmp.send_descriptor("state", state_fd, command="add-fd", arguments={"fdset-id": _STATE_SET})
    yield f"file:/dev/fdset/{_STATE_SET}"
    qmp.execute("remove-fd", {"fdset-id": _STATE_SET})


def _await_migration(qmp: Qmp, last_words: Callable[[], list[str]], phase: str) -> None:
    """Both directions take single milliseconds: asking again beats an event and its set-up."""
    for _ in range(_TRIES):
        status = qmp.execute("query-migrate").get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            break
        select.select([], [], [], 0.0005)
    raise VmmError(f"QEMU could not {phase}: {'; '.join(last_words()) or status}", code="template-refused")
