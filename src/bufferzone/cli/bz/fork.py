"""`bz fork ID NEW-ID...`: running copies of a running container, each in a VM of its own.

The container is saved without being ended, restored once for each new id, and what was saved is removed. A
copy has its own clock, random numbers, hostname and files; what its processes remember is the original's.
"""

from __future__ import annotations

import os

from bufferzone import oci, state
from bufferzone.cli import output
from bufferzone.cli.bz import scratch
from bufferzone.cli.flags import Flag
from bufferzone.cli.oci import checkpoint, create
from bufferzone.client import container, removal, start, waiter
from bufferzone.client.connection import Client
from bufferzone.errors import StateError, UsageError
from bufferzone.oci.host import settings_of
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options
    from bufferzone.oci import Spec

FLAGS = (
    Flag("output", "DIR", "where NEW-ID.out and NEW-ID.err get what a copy writes; else it is dropped"),
    Flag("shim", "PATH", "the shim's program, for tests"),
)
USAGE = "[options] ID NEW-ID..."
DESCRIPTION = (
    "The original stands still for a moment and goes on. A copy is an ordinary container afterwards; it "
    "reads nothing from stdin, has no network, and no terminal. The original's root file system has to be on "
    "a disk (annotation bufferzone.rootfs=block), without volumes."
)
WORDS = (2, 1000)
INTERSPERSED = True
_HOSTNAME = 63


def run(options: Options, words: list[str]) -> int:
    """Save once, restore as often as wanted; the ids that came to be are printed."""
    names = [state.check_id(word) for word in words[1:]]
    if len(set(names)) < len(names):
        raise UsageError("the new ids must differ")
    root = state.runtime_root(options.root)
    source = container.find(options.root, words[0])
    for name in names:
        if os.path.exists(os.path.join(root, name)):
            raise UsageError(f"container with given ID already exists: {name}")
    options.__dict__.update(console_socket="", shim=options.shim or "")
    if options.output:
        options.__dict__["output"] = state.absolute(options.output)
    found = state.read_state(source)
    original = oci.load(str(found["bundle"]))
    if original.terminal:
        raise StateError(f"cannot fork container {words[0]}: it has a terminal")
    with scratch.scratch(scratch.beside(settings_of(original).image_store)) as directory:
        image = os.path.join(directory, "image")
        checkpoint.save(source, image, leave_running=True)
        for name in names:
            _restore(options, root, name, original, image)
            output.print_text(f"{name}\n")
    return 0


def _restore(options: Options, root: str, name: str, original: Spec, checkpoint_path: str) -> None:
    import json

    directory = start.new_container(root, name, original)
    try:
        bundle = os.path.join(directory, "bundle")
        os.mkdir(bundle, 0o700)
        state.replace_file(os.path.join(bundle, "config.json"), json.dumps(clone_of(original, name)).encode())
        spec = oci.load(bundle)
        start.start_shim(directory, spec, options.shim, checkpoint_path)
        job = create.job_of(options, directory, spec)
        _detach(job, options.output)
        with Client.connect(directory) as client:
            client.call("Start", task.StartRequest(id=name))
    except BaseException as error:
        removal.discard(directory, options.shim, error)
        raise


def clone_of(original: Spec, name: str) -> dict[str, Any]:
    """The config.json of a copy: its own hostname and cgroup, no network, the same root on the host."""
    import json

    value: dict[str, Any] = json.loads(json.dumps(original.raw))
    value["hostname"] = name[:_HOSTNAME]
    value["root"]["path"] = original.rootfs
    linux = value.setdefault("linux", {})
    spaces = [entry for entry in linux.get("namespaces", []) if entry["type"] != "network"]
    linux["namespaces"] = [*spaces, {"type": "network"}]
    if original.cgroups_path:
        linux["cgroupsPath"] = _cgroup(original.cgroups_path, name)
    for entry in value.get("mounts", []):
        source = entry.get("source", "")
        if entry.get("type") == "bind" and source and not source.startswith("/"):
            entry["source"] = os.path.join(original.bundle, source)
    return value


def _cgroup(path: str, name: str) -> str:
    """A cgroup beside the original's; systemd's form is slice:prefix:name."""
    if path.count(":") == 2:
        return f"{path.rpartition(':')[0]}:{name}"
    return os.path.join(os.path.dirname(path.rstrip("/")), name)


def _detach(job: waiter.Job, output: str) -> int:
    """Fork the waiter with stdio of its own, then take ours back."""
    kept = [os.dup(number) for number in range(3)]
    try:
        for number, suffix in enumerate(("", "out", "err")):
            path = os.path.join(output, f"{job.id}.{suffix}") if output and suffix else "/dev/null"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if suffix else os.O_RDONLY
            fd = os.open(path, flags, 0o600)
            os.dup2(fd, number)
            os.close(fd)
        return waiter.detach(job)
    finally:
        for number, fd in enumerate(kept):
            os.dup2(fd, number)
            os.close(fd)
