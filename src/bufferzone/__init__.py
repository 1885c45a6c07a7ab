"""bufferzone: containers inside lean virtual machines. Importing this imports nothing else.

The names of the Python library (docs/library.md) are here, and are loaded when they are first used.
"""

from __future__ import annotations

__version__ = "0.1.0"

#: what the library exports -> the module that it is in
_EXPORTS = {
    "Change": "library.values",
    "Container": "library.container",
    "FileInfo": "library.values",
    "Files": "library.files",
    "Info": "library.values",
    "Port": "library.values",
    "Process": "library.process",
    "Result": "library.values",
    "Sandbox": "library.sandbox",
    "Reseed": "workload.snapshots",
    "Snapshot": "library.snapshot",
    "Stats": "library.values",
    "Timings": "library.values",
    "BufferzoneError": "errors",
    "BugError": "errors",
    "CallerError": "errors",
    "EndedError": "errors",
    "ExecError": "errors",
    "ExistsError": "errors",
    "FileError": "errors",
    "GuestError": "errors",
    "HostError": "errors",
    "NotFoundError": "errors",
    "SpecError": "errors",
    "StateError": "errors",
    "UsageError": "errors",
    "VmmError": "errors",
}
__all__ = sorted(_EXPORTS)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.errors import (
        BufferzoneError as BufferzoneError,
    )
    from bufferzone.errors import (
        BugError as BugError,
    )
    from bufferzone.errors import (
        CallerError as CallerError,
    )
    from bufferzone.errors import (
        EndedError as EndedError,
    )
    from bufferzone.errors import (
        ExecError as ExecError,
    )
    from bufferzone.errors import (
        ExistsError as ExistsError,
    )
    from bufferzone.errors import (
        FileError as FileError,
    )
    from bufferzone.errors import (
        GuestError as GuestError,
    )
    from bufferzone.errors import (
        HostError as HostError,
    )
    from bufferzone.errors import (
        NotFoundError as NotFoundError,
    )
    from bufferzone.errors import (
        SpecError as SpecError,
    )
    from bufferzone.errors import (
        StateError as StateError,
    )
    from bufferzone.errors import (
        UsageError as UsageError,
    )
    from bufferzone.errors import (
        VmmError as VmmError,
    )
    from bufferzone.library.container import Container as Container
    from bufferzone.library.files import Files as Files
    from bufferzone.library.process import Process as Process
    from bufferzone.library.sandbox import Sandbox as Sandbox
    from bufferzone.library.snapshot import Snapshot as Snapshot
    from bufferzone.library.values import (
        Change as Change,
    )
    from bufferzone.library.values import (
        FileInfo as FileInfo,
    )
    from bufferzone.library.values import (
        Info as Info,
    )
    from bufferzone.library.values import (
        Port as Port,
    )
    from bufferzone.library.values import (
        Result as Result,
    )
    from bufferzone.library.values import (
        Stats as Stats,
    )
    from bufferzone.library.values import (
        Timings as Timings,
    )
    from bufferzone.workload.snapshots import Reseed as Reseed


def __getattr__(name: str) -> object:
    """PEP 562: the first use of a name of the library."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'bufferzone' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"bufferzone.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
