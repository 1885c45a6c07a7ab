"""The shim's command line as containerd writes it (Go flags: -x v, -x=v, --x) plus the few flags of our
own.
"""

from __future__ import annotations

import os

from bufferzone.errors import UsageError

_WITH_VALUE = (
    "namespace",
    "address",
    "publish-binary",
    "id",
    "bundle",
    "socket",
    "debug-socket",
    "root",
    "ready-fd",
    "shape",
    "restore-from",
)
_SWITCHES = ("debug", "systemd-cgroup", "v", "info", "version")
ACTIONS = ("serve", "start", "delete", "info", "version", "template", "saver")


class Arguments:
    """`action` is one of those that were allowed; the rest are the flags' texts, empty when not given."""

    def __init__(self) -> None:
        self.action = ""
        self.debug = self.systemd_cgroup = False
        self.namespace = self.address = self.id = self.bundle = self.root = self.ready_fd = ""
        self.shape = ""
        self.restore_from = ""
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
        if name in _SWITCHES:
            _switch(result, name)
        elif name in _WITH_VALUE:
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
