"""`bufferzone`: the OCI runtime command line. Finds the verb, imports that one, tells failures in one place.

The exit status of a failure is runc's: 1, 255 for exec, and 3 where there is no such command.
"""

from __future__ import annotations

import os
import sys

from bufferzone import log
from bufferzone.cli.flags import Flag, Options, help_text, ignored, parse
from bufferzone.cli.oci import VERBS
from bufferzone.errors import BufferzoneError, ExecError, UsageError
from bufferzone.log import shown
from bufferzone.state import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

GLOBAL = (
    Flag("root", "DIR", "where the state of containers lies (/run/bufferzone, or below XDG_RUNTIME_DIR)"),
    Flag("log", "FILE", "append a failure to this file as well, and the steps with --debug"),
    Flag("log-format", "text|json", "the form of a record in the log", default="text"),
    Flag("debug", "", "tell each step with its time, and where a failure came from"),
    Flag("systemd-cgroup", "", "the cgroup is a scope that systemd makes; cgroupsPath is slice:prefix:name"),
    Flag("version v", "", "print the version"),
    Flag("shim", "FILE", "for tests: the Python file to run as the shim", hidden=True),
    ignored("cgroup-manager", "NAME", "crun's; the guest manages its own cgroups"),
    ignored("rootless", "true|false|auto", "found out by itself"),
    ignored("criu", "PATH", "a checkpoint is a whole VM"),
)

SUMMARY = "an OCI runtime that runs each container in a virtual machine"
USAGE = "[global options] COMMAND [options] [arguments]"

_FAILED, _NO_COMMAND, _EXEC_FAILED = 1, 3, 255  # runc's


def command() -> int:
    """The program that a wheel installs, pyproject.toml: `main` with this process's words."""
    return main(sys.argv[1:])


def main(argv: Sequence[str]) -> int:
    """Run one command line and return the exit status. Every failure is told through `log`."""
    options = Options(GLOBAL)
    verb = ""
    _fill_stdio()
    try:
        options, rest = _parse_global(argv)
        if options.version:
            return _print(version())
        if options.help or not rest or rest[0] in ("help", "h"):
            return _print(_program_help()) if not rest[1:] else _run(rest[1], ["--help"], options)
        verb = rest[0]
        return _run(verb, rest[1:], options)
    except BufferzoneError as error:
        log.report(error, path=options.log, form=options.log_format, debug=options.debug)
        return _status(verb, error)
    except Exception as error:  # the boundary: a bug of ours is told as one
        log.report(error, path=options.log, form=options.log_format, debug=options.debug)
        return _EXEC_FAILED if verb == "exec" else _FAILED
    except KeyboardInterrupt:
        return 130


def _fill_stdio() -> None:
    """A standard descriptor that the caller closed is /dev/null: what is opened next must not become it."""
    while (fd := os.open("/dev/null", os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


def _parse_global(argv: Sequence[str]) -> tuple[Options, list[str]]:
    options, rest = parse(GLOBAL, argv, interspersed=False)
    if options.log_format not in ("text", "json"):
        wanted, options.log_format = options.log_format, "text"
        raise UsageError(f"unknown log-format: {shown(wanted)}", hint="text or json")
    if options.log:
        log.check(options.log)
    if options.debug:
        os.environ[log.DEBUG] = f"{options.log_format} {options.log}"
    return options, rest


def _note(options: Options, level: str = "debug") -> Callable[[str], None]:
    """What a verb tells its steps to: nobody, unless they are asked for; and its warnings."""
    if level == "debug" and not options.debug:
        return lambda text: None
    path, form = options.log, options.log_format
    return lambda text: log.note(text, path=path, form=form, level=level)


def _run(verb: str, words: list[str], options: Options) -> int:
    if verb not in VERBS:
        text = f"no such command: {shown(verb)}"
        raise UsageError(text, hint="bufferzone --help lists them", code="no-such-command")
    name, summary = VERBS[verb]
    module: Any = __import__(f"bufferzone.cli.oci.{name}", fromlist=["run"])
    own, rest = parse(module.FLAGS, words, interspersed=module.INTERSPERSED)
    if own.help:
        _print(help_text(f"bufferzone {verb}", summary, module.USAGE, module.DESCRIPTION, module.FLAGS))
        return 0
    told = {name: getattr(options, name) for name in ("root", "shim", "systemd_cgroup")}
    own.take(**told, verb=verb, note=_note(options), warn=_note(options, "warning"))
    check_words(verb, rest, *module.WORDS)
    log.debug(f"{verb} begins: {shown(' '.join(rest[:1]))}")  # more may be a secret, and the log is for all
    status = int(module.run(own, rest))
    log.debug(f"{verb} ends with {status}")
    return status


def check_words(verb: str, words: list[str], least: int, most: int) -> None:
    """Raise `UsageError` unless there are as many words as the verb takes; -1 is any number."""
    if least <= len(words) and (most < 0 or len(words) <= most):
        return
    wanted = f"at least {least}" if most < 0 else f"{least}" if least == most else f"{least} to {most}"
    raise UsageError(f'"{verb}" requires {wanted} argument(s), got {len(words)}')


def _status(verb: str, error: BufferzoneError) -> int:
    """runc's exit statuses, but 126 and 127 where a shell would say them: docker and CRI-O show them."""
    if isinstance(error, ExecError) and verb in ("run", "exec"):
        return 126 if error.code == "exec-not-executable" else 127
    if error.code == "no-such-command":
        return _NO_COMMAND
    return _EXEC_FAILED if verb == "exec" else error.exit_status


def _print(text: str) -> int:
    os.write(1, text.encode())
    return 0


def version() -> str:
    """The lines of `--version`, in runc's form."""
    from bufferzone import __version__

    release = ".".join(str(n) for n in sys.version_info[:3])
    return f"bufferzone version {__version__}\nspec: {OCI_VERSION}\npython: {release}\n"


def _program_help() -> str:
    text = help_text("bufferzone", SUMMARY, USAGE, "", GLOBAL)
    rows = "".join(f"   {name.ljust(12)}{summary}\n" for name, (_, summary) in VERBS.items())
    return f"{text}\nCOMMANDS:\n{rows}"
