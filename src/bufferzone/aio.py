"""The library for asyncio: the same names, derived from the one core, each call in a thread of its own.

    async with aio.Sandbox() as sb:
        done = await sb.run(["true"])

What blocks there is awaited here; what is a value there is one here. A `run` that is cancelled is killed with
all it started before the cancellation goes on. Every other call that is cancelled goes on in its thread.
"""

from __future__ import annotations

import asyncio
import functools
import os
from concurrent.futures import ThreadPoolExecutor

from bufferzone.library.container import Container as _Container
from bufferzone.library.files import Files as _Files
from bufferzone.library.process import Process as _Process
from bufferzone.library.sandbox import Sandbox as _Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator
    from typing import Any, Self

#: calls at a time: each waits for its answer
_MOST = 256
_DONE = object()


@functools.cache
def _threads(pid: int) -> ThreadPoolExecutor:
    """Those of this process; the child of a fork has its own."""
    return ThreadPoolExecutor(_MOST, thread_name_prefix="bufferzone")


async def _in_thread(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads(os.getpid()), functools.partial(work, *args, **options))


class _Derived:
    """Has the methods that `_derive` gives it; `core` is what they are called on."""

    _core: Any

    @classmethod
    def _of(cls, core: Any) -> Self:
        found = cls.__new__(cls)
        found._core = core
        return found

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _in_thread(self._core.close)

    def __repr__(self) -> str:
        return f"<aio {self._core!r}>"


def _awaited(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def call(self: _Derived, *args: Any, **options: Any) -> Any:
        return await _in_thread(method, self._core, *args, **options)

    return call


def _value(name: str) -> property:
    return property(lambda self: getattr(self._core, name))


def _derive(cls: type[_Derived], core: type) -> None:
    """Give `cls` what `core` has of its own and it has not: methods that are awaited, and properties."""
    for name, member in vars(core).items():
        if name.startswith("_") or name in vars(cls):
            continue
        if isinstance(member, property):
            setattr(cls, name, _value(name))
        elif callable(member):
            setattr(cls, name, _awaited(member))


class Files(_Derived):
    """`bufferzone.Files`, awaited."""

    async def watch(self, path: str | os.PathLike[str]) -> AsyncIterator[Any]:
        """What changes in a directory from now on."""
        changes = await _in_thread(self._core.watch, path)
        while (change := await _in_thread(next, changes, _DONE)) is not _DONE:
            yield change


class Process(_Derived):
    """`bufferzone.Process`, awaited; `read`, `readline` and `write` are for its streams."""

    @property
    def args(self) -> tuple[str, ...]:
        """Its command line."""
        return tuple(self._core.args)

    async def write(self, data: bytes) -> None:
        """All of it into stdin."""
        from bufferzone.library.trees import write_all

        await _in_thread(write_all, self._core.stdin, data)

    async def close_stdin(self) -> None:
        """No more input."""
        await _in_thread(self._core.stdin.close)

    async def read(self, size: int = -1, *, stream: str = "stdout") -> bytes:
        """So many bytes, or all until the end."""
        data: bytes = await _in_thread(getattr(self._core, stream).read, size)
        return data

    async def readline(self, *, stream: str = "stdout") -> bytes:
        """A line, empty at the end."""
        data: bytes = await _in_thread(getattr(self._core, stream).readline)
        return data


class Container(_Derived):
    """`bufferzone.Container`, awaited: `async with sb.container(...)`, or `await sb.container(...)`, starts
    it.
    """

    _begin: Callable[[], Any]

    async def _begun(self) -> Self:
        self._core = await _in_thread(self._begin)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._begun().__await__()

    async def __aenter__(self) -> Self:
        return self if hasattr(self, "_core") else await self._begun()

    async def run(self, *args: Any, **options: Any) -> Any:
        """Run a program to its end; cancelled, it is killed."""
        stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        work = asyncio.ensure_future(_in_thread(self._core.run, *args, stop=stop, **options))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            os.eventfd_write(stop, 1)
            await asyncio.wait([work])
            raise
        finally:
            os.close(stop)

    async def start(self, *args: Any, **options: Any) -> Process:
        """Start a program and return it while it runs."""
        return Process._of(await _in_thread(self._core.start, *args, **options))

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._core.name)

    @property
    def files(self) -> Files:
        """Its files."""
        return Files._of(self._core.files)


class Sandbox(Container):
    """`bufferzone.Sandbox`, awaited: `async with Sandbox(...)`, or `await Sandbox(...)`, starts it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._begin = functools.partial(_Sandbox, *args, **options)

    @classmethod
    async def attach(cls, name: str, *, root: str = "") -> Self:
        """One that runs already."""
        return cls._of(await _in_thread(_Sandbox.attach, name, root=root))

    @classmethod
    async def from_snapshot(cls, snapshot: str, **options: Any) -> Self:
        """One that goes on where `snapshot` was saved."""
        return cls._of(await _in_thread(_Sandbox.from_snapshot, snapshot, **options))

    def container(self, *args: Any, **options: Any) -> Container:
        """One more container in it, which starts when it is awaited or entered."""
        found = Container.__new__(Container)
        found._begin = functools.partial(self._core.container, *args, **options)
        return found

    async def fork(self, count: int = 1, **options: Any) -> tuple[Self, ...]:
        """So many running copies of it."""
        return tuple(type(self)._of(core) for core in await _in_thread(self._core.fork, count, **options))

    @staticmethod
    async def list(*, root: str = "") -> list[Any]:
        """All there are."""
        return [*await _in_thread(_Sandbox.list, root=root)]


for _face, _origin in (
    (Files, _Files),
    (Process, _Process),
    (Container, _Container),
    (Sandbox, _Sandbox),
):
    _derive(_face, _origin)
