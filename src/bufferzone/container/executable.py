"""Which file process.args[0] means, checked with the rights of the container's user. Runs in the child.

Source: Go's os/exec.LookPath, whose texts callers of runc match ("executable file not found", "permission
denied").
"""

from __future__ import annotations

import errno
import os
import stat

from bufferzone.errors import ExecError


def find(name: str, path: str | None) -> str:
    """The path to give to execve(2); raises `ExecError` with code exec-not-found or exec-not-executable."""
    if "/" in name:
        try:
            _check(name)
        except OSError as error:
            raise exec_error(name, error) from error
        return name
    for directory in (path or "").split(":") if path and name else ():
        candidate = os.path.join(directory or ".", name)
        try:
            _check(candidate)
        except OSError:
            continue  # to the next one, as execvp(3) does
        return candidate
    raise ExecError(f'exec: "{name}": executable file not found in $PATH', code="exec-not-found")


def exec_error(name: str, error: OSError) -> ExecError:
    """The error of a path that cannot be executed, in Go's words."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        text = (error.strerror or "").lower()
        return ExecError(f'exec: "{name}": stat {name}: {text}', code="exec-not-found")
    text = os.strerror(error.errno or errno.EACCES).lower()
    return ExecError(f'exec: "{name}": {text}', code="exec-not-executable")


def _check(path: str) -> None:
    mode = os.stat(path).st_mode
    # a directory too: EACCES is what LookPath and execve(2) say of it, and podman makes that 126
    if stat.S_ISDIR(mode) or not os.access(path, os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
