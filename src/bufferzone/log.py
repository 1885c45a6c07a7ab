"""How a verb's failure is told: one form on stderr, and one object or line in the log a caller asked for.

Podman parses the whole log as one JSON object, containerd takes the last line with level=error, conmon hands
up to 8 KiB of stderr on: so there is exactly one record per failed command, and nothing else unless the steps
are asked for (`note`, `debug`). A shim has one line for each thing it tells (`say`).
"""

from __future__ import annotations

import os
import time

from bufferzone.errors import BufferzoneError, HostError

TYPE_CHECKING = False

_LIMIT = 4096
#: in the environment where debugging is on, so that programs of ours know that we start: `SHIM`, or the form
#: and the path of a verb's log
DEBUG, SHIM = "BUFFERZONE_DEBUG", "shim"


def line_of(error: BaseException) -> str:
    """An exception as one line: message and hint of ours, `internal error: Type: text` of any other."""
    if isinstance(error, BufferzoneError):
        text = error.line()
    else:
        text = f"internal error: {type(error).__name__}: {error}"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."


def record(message: str, form: str, now: float, level: str = "error") -> str:
    """One log record, logrus' fields: `json` or `text`."""
    from bufferzone.jsontext import quote  # which `state` does not need

    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if form == "json":
        return f'{{"level":"{level}","msg":{quote(message)},"time":"{stamp}"}}\n'
    return f'time="{stamp}" level={level} msg={quote(message)}\n'


def check(path: str) -> None:
    """Make the log, as runc does at the beginning; raises `HostError` when it cannot be written."""
    try:
        os.close(_open(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HostError(f"cannot write the log {path!a}: {reason}", code="log") from error


def note(text: str, *, path: str, form: str, level: str = "debug") -> None:
    """One step at debug level, or a warning, to the log or, without one, to stderr. Never raises.

    The time has microseconds: what took how long is what the steps are read for.
    """
    now = time.time()
    line = record(text, form, now, level).replace('Z"', f'.{int(now % 1 * 1e6):06d}Z"', 1)
    try:
        fd = _open(path) if path else 2
        os.write(fd, line.encode())
        if path:
            os.close(fd)
    except (OSError, ValueError):
        pass  # a verb does not fail for what is only told


def debug(text: str) -> None:
    """One step, or an error that is passed over, at debug level; nothing unless that is on. Never raises."""
    wanted = os.environ.get(DEBUG)
    if wanted is None:
        return
    if wanted == SHIM:
        say(text, level="debug")
    else:
        form, _, path = wanted.partition(" ")
        note(text, path=path, form=form)


def say(text: str, level: str = "") -> None:
    """One line to stderr, a shim's log, with the time; control characters are escaped, since some of it is
    the guest's. Never raises.
    """
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    stamp += f".{int(now % 1 * 1e6):06d}Z level={level}" if level else "Z"
    line = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    try:
        os.write(2, f"{stamp} {line}\n".encode())
    except OSError:
        pass  # nobody listens


class passing_over:
    """A context in which an error of these classes is passed over, and told at debug level: who reads that
    wants to know what was being done. For errors of which no kind matters; else see `linux.ignoring`.
    """

    __slots__ = ("_classes", "_what")

    def __init__(self, what: str, *classes: type[BaseException]) -> None:
        self._what, self._classes = what, classes

    def __enter__(self) -> None:
        return None

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, self._classes):
            return False
        debug(f"passed over: {self._what}: {line_of(error)}")
        return True


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o644)


def report(
    error: BaseException,
    *,
    path: str = "",
    form: str = "text",
    debug: bool = False,
    program: str = "bufferzone",
) -> None:
    """Write the failure to stderr and, when there is a log, append one record to it. Never raises."""
    message = line_of(error)
    if path:
        try:
            fd = _open(path)
            try:
                os.write(fd, record(message, form, time.time()).encode())
            finally:
                os.close(fd)
        except (OSError, ValueError) as reason:
            message += f" (and cannot write the log {path!a}: {getattr(reason, 'strerror', reason)})"
    if form == "json" and not path:
        text = record(message, form, time.time())
    else:
        text = f"{program}: {message}\n"
    if debug:
        import traceback

        text += "".join(traceback.format_exception(error))
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody listens


def shown(text: str) -> str:
    """A caller's text inside a message: printable, on one line, not endless."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")[1:-1]
