"""The exception tree, split by whose fault it is. Nothing here prints, logs or exits.

    BufferzoneError          has a stable kebab-case `code`, a message, an optional hint
    |-- CallerError          what was asked cannot be: bad flag, bad config.json, wrong state
    |   |-- UsageError       the command line itself
    |   |-- SpecError        config.json or an annotation; the message starts with the JSON path
    |   |-- NotFoundError    no such container or exec
    |   |-- ExistsError      the id is taken
    |   `-- StateError       the verb does not fit the container's state
    |       `-- EndedError   ... since the process has ended
    |-- HostError            this machine lacks or refused something: program, device, disk, permission
    |-- VmmError             the hypervisor or one of its helpers did not come up, or died
    |-- GuestError           the agent in the VM refused or failed
    |   |-- ExecError        the program to start is missing (127) or not executable (126)
    |   `-- FileError        an operation on a file in a sandbox
    `-- BugError             an invariant of ours did not hold

Foreign errors are translated once, where they appear, by number and never by text.
"""

from __future__ import annotations


class BufferzoneError(Exception):
    """One failure as a form: `code` (stable, kebab-case), one-line message, hint for the person reading.

    `exit_status` is what an OCI verb ends with; `rpc_code` is the google.rpc code on the wire.
    """

    code = "error"
    exit_status = 1
    rpc_code = 2  # UNKNOWN

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code:
            self.code = code

    def line(self) -> str:
        """The error as one line of text, hint included."""
        text = self.message.replace("\n", " ")
        return f"{text} (hint: {self.hint})" if self.hint else text


class CallerError(BufferzoneError):
    code = "bad-request"
    rpc_code = 3  # INVALID_ARGUMENT


class UsageError(CallerError):
    code = "usage"


class SpecError(CallerError):
    code = "bad-spec"


class NotFoundError(CallerError):
    code = "not-found"
    rpc_code = 5  # NOT_FOUND


class ExistsError(CallerError):
    code = "exists"
    rpc_code = 6  # ALREADY_EXISTS


class StateError(CallerError):
    code = "wrong-state"
    rpc_code = 9  # FAILED_PRECONDITION


class EndedError(StateError):
    """The process has ended already: containerd, dockerd and the kubelet want to hear that as not found."""

    code = "not-running"
    rpc_code = 5  # NOT_FOUND


class HostError(BufferzoneError):
    code = "host"


class VmmError(BufferzoneError):
    code = "vmm"
    rpc_code = 14  # UNAVAILABLE


class GuestError(BufferzoneError):
    code = "guest"


#: the code of a `GuestError`: a process ended before its program began
PROCESS_DIED = "process-died"
#: the code of a `StateError`: the VM has ended, or the container that the sandbox was made for
SANDBOX_ENDED = "sandbox-ended"


class ExecError(GuestError):
    """The process cannot be executed; `exit_status` is 127 (not found) or 126 (found, not executable).

    The class travels over the wire by its code, `exec-not-found` or `exec-not-executable`.
    """

    code = "exec-not-found"


class FileError(GuestError):
    """An operation on a file in a sandbox failed; `errno` is the guest's word why."""

    code = "file-failed"
    errno = 0


class BugError(BufferzoneError):
    code = "bug"
    rpc_code = 13  # INTERNAL


def all_error_classes() -> list[type[BufferzoneError]]:
    """Every class of the tree, parents first; those that other modules made for themselves are not of it."""
    found: list[type[BufferzoneError]] = [BufferzoneError]
    for cls in found:
        found.extend(sub for sub in cls.__subclasses__() if sub.__module__ == __name__)
    return found


def class_in_tree(error: BufferzoneError) -> type[BufferzoneError]:
    """The class of the tree that an error is of."""
    return next(cls for cls in type(error).__mro__ if cls.__module__ == __name__)
