"""leftovers.json: written while a sandbox runs, and what ends from it alone what a killed shim left behind.

A pid is trusted only with its start time, a link or a namespace only with its inode.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from functools import partial

from bufferzone import state
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.linux import pidfd
from bufferzone.network import namespace, tcfilter
from bufferzone.vm import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WAIT_S = 5.0
_OWNER_WAIT_S = 3.0


class Leftovers:
    """Writes leftovers.json, at every step that leaves something behind, into the state directory of each
    container of the VM: whichever is deleted last tells of everything. Thread-safe.
    """

    def __init__(self, directory: str) -> None:
        self._directories = [directory]
        self._lock = threading.Lock()
        self._left: dict[str, list[Any]] = {
            "processes": [],
            "cgroups": [],
            "scopes": [],
            "networks": [],
            "links": [],
        }

    def add_process(self, pid: int) -> None:
        """One that has to end with the sandbox."""
        self._add("processes", [[pid, state.process_start(pid)]])

    def add_cgroups(self, directories: list[str]) -> None:
        """Directories to remove."""
        self._add("cgroups", directories)

    def drop_cgroups(self, directories: list[str]) -> None:
        """They were removed."""
        with self._lock:
            for directory in directories:
                self._left["cgroups"].remove(directory)
            self._write()

    def add_scope(self, unit: str) -> None:
        """A unit of systemd's that has to go."""
        self._add("scopes", [unit])

    def drop_scope(self, unit: str) -> None:
        """It ends by itself."""
        with self._lock:
            self._left["scopes"].remove(unit)
            self._write()

    def add_network(self, identity: list[int], path: str, taps: list[str]) -> None:
        """The namespace at `path` (device and inode: `identity`) gets these taps, all of ours there."""
        with self._lock:
            others = [row for row in self._left["networks"] if row["identity"] != identity]
            self._left["networks"] = [*others, {"identity": identity, "path": path, "taps": taps}]
            self._write()

    def add_link(self, path: str, identity: list[int]) -> None:
        """A name of the file with this device and inode that is to go."""
        self._add("links", [[path, identity]])

    def add_directory(self, directory: str) -> None:
        """The state directory of one more container."""
        with self._lock:
            self._directories.append(directory)
            self._write()

    def drop_directory(self, directory: str) -> None:
        """It is about to be removed; the last one keeps its file until then."""
        with self._lock:
            if directory in self._directories and len(self._directories) > 1:
                self._directories.remove(directory)

    def _add(self, key: str, rows: list[Any]) -> None:
        with self._lock:
            self._left[key] += rows
            self._write()

    def _write(self) -> None:
        for directory in tuple(self._directories):
            try:
                state.write_leftovers(directory, self._left)
            except HostError:
                if len(self._directories) == 1 or os.path.isdir(directory):
                    raise
                self._directories.remove(directory)  # a forced removal did not ask us


def clean(directory: str) -> list[str]:
    """Kill the recorded processes, wait for their end, remove the recorded cgroups and scopes.

    Returns what could not be removed, as text; the state directory itself stays for the caller.
    """
    _await_owner(directory)
    leftovers = state.read_leftovers(directory)
    left = []
    for pid, start in leftovers.get("processes", []):
        if not _kill(int(pid), int(start)):
            left.append(f"process {pid}")
    for path in leftovers.get("cgroups", []):
        try:
            cgroups.remove(path)
        except OSError as error:
            left.append(f"cgroup {path}: {error.strerror}")
    for unit in leftovers.get("scopes", []):
        from bufferzone.systemd import scope

        if problem := scope.stop(unit):
            left.append(f"scope {unit}: {problem}")
    for path, identity in leftovers.get("links", []):
        _unlink(path, identity)
    for network in leftovers.get("networks", []):
        try:
            _part(network)
        except (OSError, BufferzoneError) as error:
            left.append(f"taps in {network['path']}: {error}")
    return left


def _unlink(path: str, identity: list[int]) -> None:
    """Remove a name that the killed shim gave a file or its socket, unless it is another's by now."""
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if [found.st_dev, found.st_ino] == identity:
            os.unlink(path)


def _part(network: dict[str, Any]) -> None:
    """Take taps and traffic control from a namespace, if it is still the one that had them."""
    try:
        fd = namespace.open_path(network["path"])
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH):
            return  # it is gone, and all of it
        raise
    try:
        found = os.fstat(fd)
        if [found.st_dev, found.st_ino] == network["identity"]:
            namespace.inside(fd, partial(tcfilter.clear, network.get("taps", ())))
    finally:
        os.close(fd)


def _await_owner(directory: str) -> None:
    """A shim that is on its way out gives back more than we could; one that hangs is killed."""
    pid = state.owner_pid(directory)
    if not pid or pid == os.getpid():
        return
    try:
        owner = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        pidfd.end(owner, _OWNER_WAIT_S, _WAIT_S)
    finally:
        os.close(owner)


def _kill(pid: int, start: int) -> bool:
    """Whether the process is gone afterwards."""
    try:
        helper = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not state.process_alive(pid, start):
            return True
        pidfd.kill(helper)
        return pidfd.await_end(helper, _WAIT_S)
    finally:
        os.close(helper)
