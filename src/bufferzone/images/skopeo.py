"""skopeo, run with the caller's own rights and environment: it finds the credentials, the proxies and the
policy of signatures where it finds them for everybody. The only module that starts it.

What went wrong it says in words alone; they are read here and nowhere else. Source: skopeo-copy(1),
skopeo-delete(1), containers-auth.json(5), containers-policy.json(5).
"""

from __future__ import annotations

import os
import select
import signal

from bufferzone import programs
from bufferzone.errors import CallerError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PLACES = ("/usr/local/bin", "/usr/bin")
_MOST_WORDS, _MOST_SHOWN = 1 << 16, 160
#: they would say of the user's own store what must not be said of ours
_NOT_OURS = ("STORAGE_DRIVER", "STORAGE_OPTS")
_LOGIN = "skopeo login REGISTRY, or podman login"
#: words of skopeo's -> code, what we say, hint; the first that fits
_KNOWN = (
    ("is rejected by policy", "image-refused", "the policy of signatures refuses it", "see policy.json(5)"),
    ("no space left on device", "disk-full", "the disk is full", "bz image prune, bz image df"),
    ("disk quota exceeded", "disk-full", "the disk is full", "bz image prune, bz image df"),
    ("unauthorized", "image-auth", "the registry wants a login", _LOGIN),
    ("authentication required", "image-auth", "the registry wants a login", _LOGIN),
    ("manifest unknown", "image-unknown", "no such image or tag in the registry", ""),
    ("name unknown", "image-unknown", "no such image or tag in the registry", ""),
    ("repository name not known", "image-unknown", "no such image or tag in the registry", ""),
    ("denied", "image-unknown", "no such image in the registry, or it wants a login", _LOGIN),
    ("no such host", "no-network", "the registry's name cannot be looked up", "is the network up?"),
    ("server misbehaving", "no-network", "the registry's name cannot be looked up", "is the network up?"),
    ("network is unreachable", "no-network", "there is no network", "is the network up?"),
    ("connection refused", "no-registry", "nobody answers at the registry's address", ""),
    ("i/o timeout", "no-registry", "the registry does not answer", ""),
    ("deadline exceeded", "no-registry", "the registry does not answer", ""),
    ("server gave http response", "no-registry", "the registry speaks no TLS", "--tls-verify=false"),
    ("certificate", "no-registry", "the registry's certificate is not trusted", "/etc/containers/certs.d"),
    ("does not match", "image-corrupt", "what came is not what its digest says", "pull it again"),
    ("did not match", "image-corrupt", "what came is not what its digest says", "pull it again"),
    ("unexpected eof", "registry-lost", "the registry ended in the middle", "pull it again"),
    ("connection reset", "registry-lost", "the registry ended in the middle", "pull it again"),
    ("http2: ", "registry-lost", "the registry ended in the middle", "pull it again"),
    ("gzip: invalid", "image-corrupt", "a layer is damaged", "pull it again"),
    ("no such file or directory", "image-unknown", "no such image", ""),
    ("does not resolve to an image id", "image-unknown", "no such image", ""),
    ("identifier is not an image", "image-unknown", "no such image", ""),
    ("not found in", "image-unknown", "no such image", ""),
    ("docker daemon", "no-registry", "the Docker daemon does not answer", "systemctl start docker"),
)
_OF_THE_HOST = ("disk-full",)


def find() -> str:
    """The program. Raises `HostError` `skopeo-missing`."""
    path = programs.find("skopeo", _PLACES)
    if not path:
        raise HostError("program not found: skopeo", hint="apt-get install skopeo", code="skopeo-missing")
    return path


def run(
    arguments: Sequence[str], what: str, *, lines: Callable[[str], None] = lambda line: None, fd: int = -1
) -> None:
    """Run it; each line of its stdout goes to `lines`, or the stream to the descriptor `fd` (a terminal).

    Raises `CallerError` or `HostError` that begins with `what`. An exception, ours or of `lines`, ends it.
    """
    argv = [find(), *arguments]
    said_reader, said_writer = os.pipe2(os.O_CLOEXEC)
    out_reader, out_writer = os.pipe2(os.O_CLOEXEC)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, out_writer if fd < 0 else fd, 1),
        (os.POSIX_SPAWN_DUP2, said_writer, 2),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    environment.setdefault("PATH", programs.ENVIRONMENT["PATH"])  # newuidmap, credential helpers
    environment.setdefault("HOME", "/root" if os.geteuid() == 0 else "/nonexistent")
    try:
        pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    finally:
        os.close(said_writer)
        os.close(out_writer)
    ended = False
    try:
        said = _listen(said_reader, out_reader, lines)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ended = True
    finally:
        os.close(said_reader)
        os.close(out_reader)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if status:
        raise _failure(what, said, status)


def _listen(said: int, out: int, lines: Callable[[str], None]) -> str:
    """What it said on stderr, the end of it, once both streams have ended."""
    poller, kept, line = select.poll(), b"", b""
    for fd in (said, out):
        poller.register(fd, select.POLLIN)
    left = {said, out}
    while left:
        for fd, _ in poller.poll():
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                poller.unregister(fd)
                left.discard(fd)
            elif fd == said:
                kept = (kept + chunk)[-_MOST_WORDS:]
            else:
                *whole, line = (line + chunk).split(b"\n")
                for text in whole:
                    lines(text.decode("utf-8", "replace"))
    return kept.decode("utf-8", "replace")


def _failure(what: str, said: str, status: int) -> Exception:
    words = last_words(said) or f"skopeo ended with status {status}"
    low = words.lower()
    for pattern, code, text, hint in _KNOWN:
        if pattern in low:
            kind = HostError if code in _OF_THE_HOST else CallerError
            return kind(f"{what}: {text}", hint=hint, code=code)
    return HostError(f"{what}: {_ending(words)}", code="pull-failed")


def _ending(words: str) -> str:
    """The end of a message, which has the cause, on one line."""
    return ascii(words if len(words) <= _MOST_SHOWN else f"...{words[3 - _MOST_SHOWN :]}")[1:-1]


def last_words(said: str) -> str:
    """The message of the last record at level fatal, or the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    fatal = [line for line in lines if " level=fatal msg=" in line]
    if not fatal:
        return lines[-1].strip() if lines else ""
    text = fatal[-1].partition(" level=fatal msg=")[2]
    return text.strip().strip('"').replace('\\"', '"').replace("\\\\", "\\")
