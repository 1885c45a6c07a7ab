"""The shim's command line as containerd writes it (Go flags: -x v, -x=v, --x) plus the flags of our
own.
"""

from __future__ import annotations

import os

from bufferzone.errors import UsageError

#: flag -> what the manual page says
WITH_VALUE = {
    "namespace": "containerd's namespace",
    "address": "containerd's own socket",
    "publish-binary": "containerd's program that takes events; events go to TTRPC_ADDRESS",
    "id": "the container",
    "bundle": "the directory of its config.json",
    "socket": "accepted for containerd",
    "debug-socket": "accepted for containerd",
    "root": "where state lies; not given: below /run/bufferzone-containerd",
    "ready-fd": "descriptor that gets one line: ready, or why not",
    "shape": "what the VMs of a pool are to be like, in JSON",
    "restore-from": "directory of a checkpoint to go on from",
    "settings": "settings that the caller of `bz run` chose for this sandbox, in JSON",
}
SWITCHES = {
    "debug": "log the steps, and the errors that are passed over",
    "systemd-cgroup": "cgroups are made by systemd, as bufferzone's own flag says",
    "v": "print the version",
    "info": "print what containerd asks of a runtime",
    "version": "print the version",
}
ACTIONS = ("serve", "start", "delete", "info", "version", "template", "saver", "pack")


class Arguments:
    """`action` is one of those that were allowed; the rest are the flags' texts, empty when not given.

    `settings` are those of one sandbox that its starter chose, as JSON: see `oci.Spec`.
    """

    def __init__(self) -> None:
        self.action = ""
        self.debug = self.systemd_cgroup = False
        self.namespace = self.address = self.id = self.bundle = self.root = self.ready_fd = ""
        self.shape = ""
        self.restore_from = ""
        self.settings = ""
        self.publish_binary = self.socket = self.debug_socket = ""

    @property
    def state_root(self) -> str:
        """Where this shim keeps state: our CLI names it, containerd's namespaces get one each."""
        return self.root or os.path.join("/run/bufferzone-containerd", self.namespace or "default")


def parse(argv: list[str], actions: tuple[str, ...] = ACTIONS) -> Arguments:
    """Parse what follows the program's name; raises `UsageError`. The pool's program has other `actions`."""
    result = Arguments()
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if word not in actions or result.action:
                raise UsageError(f"unknown action: {word}", hint=", ".join(actions))
            result.action = word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in SWITCHES:
            _switch(result, name)
        elif name in WITH_VALUE:
            if not equals and not words:
                raise UsageError(f"flag needs a value: -{name}")
            setattr(result, name.replace("-", "_"), value if equals else words.pop(0))
        else:
            raise UsageError(f"unknown flag: -{name}")
    if not result.action:
        raise UsageError("no action", hint="containerd calls this program; see bufferzone --help")
    return result


def _switch(result: Arguments, name: str) -> None:
    if name in ("debug", "systemd-cgroup"):
        setattr(result, name.replace("-", "_"), True)
    else:
        result.action = "info" if name == "info" else "version"
