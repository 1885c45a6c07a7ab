"""`create`: check everything, boot the VM and make the container, write the pid file."""

from __future__ import annotations

import os

from bufferzone import oci, state
from bufferzone.cli import process_flags
from bufferzone.cli.flags import Flag, ignored
from bufferzone.client import create
from bufferzone.errors import HostError, SpecError, UsageError
from bufferzone.log import shown
from bufferzone.oci.cgroup_path import systemd_form
from bufferzone.oci.host import check_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options
    from bufferzone.oci import Spec

FLAGS: tuple[Flag, ...] = (
    Flag("bundle b", "DIR", "directory with config.json", default="."),
    Flag("config f", "FILE", "crun's: the configuration; only the bundle's own config.json can be it"),
    Flag("console-socket", "PATH", "unix socket that gets the terminal's master"),
    Flag("pid-file", "FILE", "where to write the pid of the process that stands for the container"),
    process_flags.PRESERVE_FDS,
    ignored("pidfd-socket", "PATH", "accepted, nothing is sent"),
    ignored("no-pivot", "", "the guest has a root file system of its own"),
    ignored("no-new-keyring", "", "the guest's keyrings are its own"),
)
USAGE = "[options] <container-id>"
DESCRIPTION = """Boots a virtual machine and makes the container in it, up to but not including its process.
The pid in the pid file is a small process on the host that ends with the container's exit status."""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Create, detached."""
    wanted = order(options, words[0], detached=True)
    create.create(wanted, process_flags.STDIO, forked=True)
    process_flags.warn_of_capabilities(wanted.spec.process, options.warn)
    return 0


def order(options: Options, id: str, *, detached: bool, checkpoint: str = "") -> create.Order:
    """What the command line asks for: paths made absolute, config.json and the terminal's rules checked."""
    state.check_id(id)
    process_flags.refuse_descriptors(options)
    process_flags.refuse_activation()
    bundle = state.absolute(options.bundle)
    pid_file, console_socket = process_flags.pid_file(options), process_flags.console_socket(options)
    if not os.path.isdir(bundle):
        raise UsageError(f"bundle: no such directory: {bundle}")
    _check_config(options.config, bundle)
    spec = oci.load(bundle)
    process_flags.check_console(options, spec.terminal, detached=detached)
    check_host(spec)
    return create.Order(
        state.runtime_root(options.root),
        id,
        spec,
        checkpoint=checkpoint,
        pid_file=pid_file,
        console_socket=console_socket,
        scope=options.systemd_cgroup and _wants_scope(spec),
        shim=options.shim,
        note=options.note,
        warn=options.warn,
    )


def _check_config(path: str, bundle: str) -> None:
    """crun takes a file of any name; what we start reads that of the bundle, and hears no other name."""
    own = os.path.join(bundle, "config.json")
    if path and os.path.realpath(path) != os.path.realpath(own):
        raise UsageError(f"--config: not the config.json of the bundle, which alone is read: {shown(path)}")


def _wants_scope(spec: Spec) -> bool:
    """Under `--systemd-cgroup`: whether the scope is one that config.json does not name; raises `SpecError`
    for another form of path, `HostError` where systemd does not run.
    """
    from bufferzone import systemd

    if not systemd.is_there():
        raise HostError(
            "systemd does not run on this host, so it cannot manage cgroups",
            hint="leave out --systemd-cgroup; with Podman: --cgroup-manager cgroupfs",
            code="no-systemd",
        )
    path = spec.cgroups_path
    if path and systemd_form(path) is None:
        raise SpecError(
            f"config.json: linux.cgroupsPath: expected slice:prefix:name with --systemd-cgroup, got {path!r}"
        )
    return not path
