"""`bz run`: one command in a sandbox of its own, in the foreground or, with -d, behind our back."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli import output, process_flags
from bufferzone.cli.bz import building, pulling, wish_flags
from bufferzone.cli.flags import Flag
from bufferzone.errors import UsageError
from bufferzone.workload import launch, place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("interactive i", "", "the command reads our stdin"),
    Flag("tty t", "", "give it a terminal"),
    Flag("detach d", "", "do not wait for the end; prints the id"),
    Flag("name", "NAME", "a name; such a container stays after its end, until bz rm"),
    Flag("rm", "", "remove it after its end in any case"),
    *pulling.FLAGS,
    Flag("timeout", "SECONDS", "kill it then (137)"),
    *wish_flags.FLAGS,
)
USAGE = "[options] IMAGE [COMMAND [arguments]], or [options] -- COMMAND [arguments]"
DESCRIPTION = (
    "An image is pulled where it is missing: NAME[:TAG], REGISTRY/NAME, oci:PATH, ./DIR and so on.\n"
    "Without an image the command finds the host's /usr, and may change it: what it writes is thrown away.\n"
    "/etc and the home directories are empty but for what programs need. The exit status is the command's;\n"
    "125: it could not be run, 126: it is not executable, 127: there is no such command, 128+N: signal N."
)
WORDS = (0, -1)
INTERSPERSED = False


def run(options: Options, words: list[str]) -> int:
    """Run it."""
    timeout_s = wish_flags.seconds("--timeout", options.timeout) if options.timeout else 0.0
    if options.detach and (options.tty or options.interactive or options.rm or timeout_s):
        raise UsageError("-d cannot be used with -i, -t, --rm or --timeout")
    image = None
    if words and not options.separated:
        image = pulling.get(options, words.pop(0), pull=options.pull)
        words = words[1:] if words[:1] == ["--"] else words
    wish = wish_flags.wish_of(options, words, terminal=options.tty, image=image)
    id = options.name or launch.new_id()
    begun = launch.Launch(wish, state.runtime_root(options.root), id, shim=options.shim)
    if options.detach:
        return _detached(begun)
    keep = bool(options.name) and not options.rm
    stdin = 0 if options.interactive else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    stdio = (stdin, *process_flags.STDIO[1:])
    return begun.run_attached(stdio, keep=keep, progress=building.progress(), timeout_s=timeout_s)


def _detached(begun: launch.Launch) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    stdio = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    stdio += [os.open(os.path.join(begun.place.path, name), flags, 0o600) for name in (place.OUT, place.ERR)]
    begun.run_detached(stdio, forked=True, progress=building.progress())
    output.print_text(f"{begun.id}\n")
    return 0
