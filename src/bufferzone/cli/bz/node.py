"""`bz node`: make this runtime known to an engine of this machine, see that it works, take it back."""

from __future__ import annotations

import os
import sys

from bufferzone import programs
from bufferzone.cli import output
from bufferzone.cli.bz import engine_files
from bufferzone.cli.flags import Flag
from bufferzone.errors import BufferzoneError, HostError, UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("for", "ENGINE", "containerd, docker or crio"),
    Flag("config", "FILE", "its configuration, where that is not at the usual place"),
    Flag("address", "SOCKET", "where it listens, where that is not the usual place"),
    Flag("no-check", "", "do not start a container"),
)
USAGE = "setup | check | undo --for ENGINE [options]"
DESCRIPTION = (
    "setup writes what the engine has to know into its configuration, has systemd restart it (Docker: reload)"
    " if it runs, and starts a container in a VM; where that fails it takes everything back. check starts "
    "the container alone. undo takes back what setup wrote. The runtime, for Docker and as handler of "
    "Kubernetes' RuntimeClass, is bufferzone."
)
WORDS = (1, 1)
INTERSPERSED = True

_FILES = {
    "containerd": "/etc/containerd/config.toml",
    "docker": "/etc/docker/daemon.json",
    "crio": "/etc/crio/crio.conf.d/50-bufferzone.conf",
}
_PROGRAMS = ("/usr/local/bin", "/usr/bin")


def run(options: Options, words: list[str]) -> int:
    """Do what the word says."""
    actions: dict[str, Callable[[str, Options], None]] = {"setup": _setup, "check": _check, "undo": _undo}
    engine = getattr(options, "for")
    if words[0] not in actions:
        raise UsageError(f"no such action: {shown(words[0])}", hint="setup, check or undo")
    if engine not in _FILES:
        raise UsageError(f"no such engine: {shown(engine)}", hint=f"--for {', '.join(_FILES)}")
    actions[words[0]](engine, options)
    return 0


def _setup(engine: str, options: Options) -> None:
    path = options.config or _FILES[engine]
    before = _read(path)
    after = _with(engine, before)
    if after == before:
        output.print_text(f"{path}: is so already\n")
    else:
        _write(path, after)
        output.print_text(f"{path}: written\n")
    try:
        if after != before:
            _tell(engine, options)
        if not options.no_check:
            _check(engine, options)
    except BufferzoneError:
        if after != before:
            _write(path, before)
            output.print_text(f"{path}: as it was\n")
            _tell(engine, options)
        raise


def _undo(engine: str, options: Options) -> None:
    path = options.config or _FILES[engine]
    before = _read(path)
    without = {"containerd": engine_files.without_containerd, "docker": engine_files.without_docker}
    after = without[engine](before) if engine in without else ""
    if after == before:
        output.print_text(f"{path}: nothing of ours is in it\n")
        return
    _write(path, after)
    output.print_text(f"{path}: {'as it was' if after else 'removed'}\n")
    _tell(engine, options)


def _check(engine: str, options: Options) -> None:
    from bufferzone.cli.bz import engine_check

    if engine == "crio":
        print("bz: not checked: CRI-O starts pods alone, see docs/kubernetes.md", file=sys.stderr)
        return
    asked = {"containerd": engine_check.containerd, "docker": engine_check.docker}[engine]
    release = asked(options.address)
    output.print_text(f"{engine}: a container ran in a VM, whose kernel is {release}\n")


def _with(engine: str, text: str) -> str:
    if engine == "containerd":
        return engine_files.with_containerd(text)
    program = programs.find("bufferzone", _PROGRAMS)
    if not program:
        raise HostError(f"not found: bufferzone in {' or '.join(_PROGRAMS)}", hint="install it first")
    made = {"docker": engine_files.with_docker, "crio": engine_files.with_crio}
    return made[engine](text, program)


def _tell(engine: str, options: Options) -> None:
    """Have the engine read its file, unless that is another than the service's."""
    from bufferzone.cli.bz import engine_check

    verb = "reload" if engine == "docker" else "restart"
    if options.config or not engine_check.tell(engine, verb):
        print(f"bz: {verb} {engine}, so that it reads its configuration", file=sys.stderr)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"cannot read {path}: {error}", code="read-failed") from error


def _write(path: str, text: str) -> None:
    """Replace the file, which keeps its mode; an empty one is removed."""
    try:
        if not text:
            os.unlink(path)
            return
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        mode = os.stat(path).st_mode & 0o7777 if os.path.exists(path) else 0o644
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
