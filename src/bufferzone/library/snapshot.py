"""Sandboxes that are prepared once: saved under a name, and started from there as often as wanted."""

from __future__ import annotations

import os
import time

from bufferzone.errors import BufferzoneError, GuestError, UsageError
from bufferzone.library.container import is_ending
from bufferzone.library.sandbox import Sandbox
from bufferzone.workload import snapshots

TYPE_CHECKING = False
if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Sequence
    from typing import Any, Self

    Ready = Sequence[str] | Callable[[Sandbox], bool]

_PROBE_S = 0.1


class Snapshot:
    """A sandbox that was saved under a name. `Snapshot(name)` is one there is; raises `NotFoundError`."""

    def __init__(self, name: str) -> None:
        """Find it."""
        self.name = name
        self._directory = snapshots.find(name)

    @classmethod
    def prepare(
        cls,
        name: str,
        image: str | os.PathLike[str],
        *,
        command: Sequence[str] | None = None,
        setup: Sequence[Sequence[str]] = (),
        ready: Ready | None = None,
        ready_timeout_s: float = 60.0,
        reseed: snapshots.Reseed = snapshots.NOTHING,
        replace: bool = False,
        **options: Any,
    ) -> Self:
        """Start a sandbox of `image`, wait until it is ready, save it under `name`, and remove it.

        `command` is what goes on in each that is started from here. The programs of `setup` are run to their
        end, one after another. `ready` is a program that is run again and again until it ends with 0, or a
        function that is called with the sandbox until it says so. `reseed`: how each is told that it is
        another one. `replace`: one of that name is taken away, once the new one is whole. `options` are
        those of `Sandbox`.

        Raises `ExistsError` for a name that is taken, `GuestError` `setup-failed` or `not-ready`, and as
        `Sandbox`; then nothing is left, and an older one is as it was.
        """
        snapshots.check_free(name, replace=replace)
        reseed.check()
        if "detached" in options:
            raise UsageError("detached: what prepares a snapshot is removed")
        with Sandbox(image, command=command, disk=True, **options) as box:
            for args in setup:
                _run(box, args)
            if ready is not None:
                _wait(box, ready, ready_timeout_s)
            return cls._save(box, name, reseed, replace=replace)

    @classmethod
    def _save(cls, box: Sandbox, name: str, reseed: snapshots.Reseed, *, replace: bool) -> Self:
        box.snapshot(name, reseed=reseed, replace=replace)
        return cls(name)

    @staticmethod
    def list() -> builtins.list[Snapshot]:
        """All there are, by name."""
        return [Snapshot(name) for name in snapshots.names()]

    def start(self, *, name: str = "", root: str = "") -> Sandbox:
        """A sandbox that goes on from here: the same as `Sandbox.from_snapshot`."""
        return Sandbox.from_snapshot(self.name, name=name, root=root)

    @property
    def size_mib(self) -> float:
        """What it takes on this disk."""
        return snapshots.size(self._directory) / (1 << 20)

    @property
    def created(self) -> str:
        """When it was saved, RFC 3339."""
        return snapshots.created(self._directory)

    def remove(self) -> None:
        """Remove it; sandboxes that were started from it go on. Raises `NotFoundError`."""
        snapshots.remove(self.name)

    def __repr__(self) -> str:
        return f"<bufferzone.Snapshot {self.name}>"


def _run(box: Sandbox, args: Sequence[str]) -> None:
    done = box.run(args)
    if not done.ok:
        said = (done.stderr.splitlines() or [""])[-1][:200]
        text = f"what prepares the snapshot failed ({done.verdict}): {args[0]!a:.80}"
        raise GuestError(text, hint=said, code="setup-failed")


def _wait(box: Sandbox, ready: Ready, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    try:
        while (left := until - time.monotonic()) > 0:
            if ready(box) if callable(ready) else box.run(ready, timeout_s=left).ok:
                return
            time.sleep(min(_PROBE_S, left))
        why = f"not ready after {timeout_s:g} s"
    except BufferzoneError:
        if not is_ending(box):
            raise
        why = "its command has ended"
    raise GuestError(f"the snapshot cannot be made: {why}", hint=_last(box.logs()), code="not-ready")


def _last(text: str) -> str:
    return (text.splitlines() or [""])[-1][:200]
