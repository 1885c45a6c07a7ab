"""How a verb's failure is told: one form on stderr, and one object or line in the log a caller asked for.

Podman parses the whole log as one JSON object, containerd takes the last line with level=error, conmon hands
up to 8 KiB of stderr on: so there is exactly one record per failed command and nothing else.
"""

from __future__ import annotations

import os
import time

from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False

_LIMIT = 4096


def quote(text: str) -> str:
    """A string as JSON, ASCII only."""
    try:
        from _json import encode_basestring_ascii  # the json package costs a bare interpreter start
    except ImportError:  # not CPython
        from json.encoder import encode_basestring_ascii
    return str(encode_basestring_ascii(text))


def line_of(error: BaseException) -> str:
    """An exception as one line: message and hint of ours, `internal error: Type: text` of any other."""
    if isinstance(error, BufferzoneError):
        text = error.line()
    else:
        text = f"internal error: {type(error).__name__}: {error}"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."


def record(message: str, form: str, now: float) -> str:
    """One log record, logrus' fields: `json` or `text`."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if form == "json":
        return f'{{"level":"error","msg":{quote(message)},"time":"{stamp}"}}\n'
    return f'time="{stamp}" level=error msg={quote(message)}\n'


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
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o644)
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
