"""`concurrent.futures` in sandboxes: functions that can be pickled go in, plain values come out.

    with SandboxExecutor("python:3.12-slim", max_workers=4, timeout_s=10) as executor:
        print(list(executor.map(judge, answers)))

The pickle is ours and is read there; what comes back is never unpickled, see `results`. A sandbox is used
again for the next call, in a new process, unless `fresh`.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from bufferzone.adapters import inside
from bufferzone.adapters.results import RemoteError, decode
from bufferzone.errors import UsageError
from bufferzone.library.container import OUTPUT_LIMIT
from bufferzone.library.sandbox import Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from types import ModuleType
    from typing import Any, ParamSpec, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")

__all__ = ["RemoteError", "SandboxExecutor"]

#: where the modules of functions lie in a sandbox
_PLACE = "/tmp/bufferzone-modules"
_INSTALLED = ("site-packages", "dist-packages")
#: what both Pythons know: pickle, "Data stream format"
_PROTOCOL = 4


class SandboxExecutor(Executor):
    """Runs functions in up to `max_workers` sandboxes of `image` at once, each made when it is first needed.

    A function is named by its module, as pickle does it. Modules that are not installed are copied into the
    sandbox, the running script among them (it needs `if __name__ == "__main__":`, as with multiprocessing);
    `modules` names more. `python` is the interpreter there. `timeout_s`, `cpu_time_s` and `output_limit` (of
    the result and of what is printed) are of one call. `fresh`: a new sandbox for each. Other options are
    those of `Sandbox`.

    A function's exception is raised by `result()`: Python's own where it is one, else `RemoteError`, which is
    also the cause of the former, and what a call that exceeds a limit ends with. Results are None, numbers,
    text, bytes, and lists, tuples, sets and dicts of them.
    """

    def __init__(
        self,
        image: str | os.PathLike[str] | None = None,
        *,
        max_workers: int = 4,
        fresh: bool = False,
        python: str = "python3",
        modules: Sequence[str] = (),
        timeout_s: float | None = None,
        cpu_time_s: float | None = None,
        output_limit: int | None = OUTPUT_LIMIT,
        **options: Any,
    ) -> None:
        """Starts nothing yet."""
        if "detached" in options or "command" in options:
            raise UsageError("detached, command: not for the sandboxes of an executor")
        self._threads = ThreadPoolExecutor(max_workers, thread_name_prefix="sandbox-executor")
        self._image, self._options, self._fresh = image, options, fresh
        self._program, self._modules = [python, "-c", _text("call.py")], tuple(modules)
        self._limits: dict[str, Any] = {
            "timeout_s": timeout_s,
            "cpu_time_s": cpu_time_s,
            "output_limit": output_limit,
        }
        self._idle: list[_Box] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have `fn` called in a sandbox. Raises `UsageError` `not-picklable`."""
        try:
            data = pickle.dumps((fn, args, kwargs), _PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            text = f"the function or an argument cannot be pickled: {error}"
            raise UsageError(text, code="not-picklable") from error
        sources = [_source(name) for name in {_module_of(fn), *self._modules}]
        return self._threads.submit(self._call, data, [source for source in sources if source])

    def _call(self, data: bytes, sources: list[tuple[str, str]]) -> Any:
        box = self._take()
        try:
            main = ""
            for name, path in sources:
                target = box.bring(name, path)
                main = target if name == "__main__" else main
            head = json.dumps({"main": main, "path": [_PLACE]}).encode()
            done = box.sandbox.run(self._program, stdin=head + b"\n" + data, **self._limits)
        except BaseException:
            box.sandbox.remove()
            raise
        self._give_back(box, keep=done.ok and not self._fresh)
        if not done.ok:
            raise RemoteError(
                f"the function was ended: {done.verdict}", code=done.verdict, traceback=done.stderr[-4096:]
            )
        return decode(done.stdout_bytes)

    def _take(self) -> _Box:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Box(Sandbox(self._image, **self._options))

    def _give_back(self, box: _Box, *, keep: bool) -> None:
        with self._lock:
            if keep and not self._closed:
                self._idle.append(box)
                return
        box.sandbox.remove()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As every executor; its sandboxes are removed, those that are in use once they are not."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        with self._lock:
            boxes, self._idle = self._idle, []
        for box in boxes:
            box.sandbox.remove()


class _Box:
    """A sandbox, and the modules that it was brought."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._brought: dict[str, str] = {}

    def bring(self, name: str, path: str) -> str:
        """Where the module's file or directory is there."""
        if name not in self._brought:
            target = f"{_PLACE}/{name}{'' if os.path.isdir(path) else '.py'}"
            self.sandbox.files.mkdir(_PLACE)
            self.sandbox.files.copy_in(path, target)
            self._brought[name] = target
        return self._brought[name]


def _text(name: str) -> str:
    return (Path(inside.__path__[0]) / name).read_text(encoding="utf-8")


def _module_of(function: Any) -> str:
    """The name of the module that a function, a method or a partial is found in."""
    while hasattr(function, "func"):
        function = function.func
    owner = getattr(function, "__self__", None)
    if owner is not None and not hasattr(owner, "__spec__"):
        function = owner if isinstance(owner, type) else type(owner)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _source(name: str) -> tuple[str, str] | None:
    """The module's name, or its package's, and where that is here; None for what is installed there too."""
    top = name.partition(".")[0]
    module: ModuleType | None = sys.modules.get(top)
    if module is None:
        raise UsageError(f"no such module is imported: {top!a:.80}", code="not-picklable")
    path = getattr(module, "__file__", None)
    if top in sys.stdlib_module_names and top != "__main__":
        return None
    if not path or not os.path.exists(path):
        if top == "__main__":
            hint = "a function of an interactive session has no file: put it into a module"
            raise UsageError("the function's module has no file", hint=hint, code="not-picklable")
        return None
    path = os.path.abspath(path)
    if any(f"/{word}/" in path for word in _INSTALLED):
        return None
    return top, os.path.dirname(path) if os.path.basename(path) == "__init__.py" else path
