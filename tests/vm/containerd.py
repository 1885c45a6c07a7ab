"""A containerd of the tests' own, in a temporary directory, and `ctr`, its client.

It is the one that is installed, or that of the directory BUFFERZONE_CONTAINERD, which may be another version:
`apt-get download containerd` and `dpkg-deb --extract` from another release are enough.
"""

from __future__ import annotations

import functools
import os
import re
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CHOSEN = os.environ.get("BUFFERZONE_CONTAINERD", "")
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
RUNTIME = "io.containerd.bufferzone.v2"
TIMEOUT_S = 120
WORDS = [sys.executable, "-ISXutf8", str(Path(__file__).parents[2] / "src/bufferzone/shim/__main__.py")]
SCRIPT = os.path.join(os.path.dirname(__file__), "..", "..", "scripts", "busybox_image.py")


def program(name):
    """The path of `containerd` or `ctr`; None where there is none."""
    return shutil.which(name, path=CHOSEN or None)


@functools.cache
def version():
    """(major, minor) of the containerd that runs."""
    done = subprocess.run([program("containerd"), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r" v?(\d+)\.(\d+)", done.stdout)
    return int(found[1]), int(found[2])


needs_containerd = pytest.mark.skipif(
    not program("containerd") or not program("ctr"), reason="needs containerd and ctr"
)


class Containerd:
    """A running daemon and its command line client."""

    def __init__(self, directory, before=()):
        self.directory, self._before = directory, before
        self.socket = str(directory / "containerd.sock")
        self.log = directory / "containerd.log"

    def ctr(self, *words, stdin=b"", check=True, namespace="bz-test"):
        done = subprocess.run(
            [program("ctr"), "-a", self.socket, "-n", namespace, *words],
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        assert not check or done.returncode == 0, (words, done.stderr.decode(), self.log.read_text()[-2000:])
        return done

    def base_config(self):
        """What every config.toml begins with."""
        return (
            f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"\n'
            f'[grpc]\n  address = "{self.socket}"\n'
        )

    def config(self):
        """The text of config.toml."""
        return 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n' + self.base_config()

    def start(self):
        config = self.directory / "config.toml"
        config.write_text(self.config())
        # containerd tells systemd when it serves; so it tells us, without any waiting in steps
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        (self.directory / "notify").unlink(missing_ok=True)
        notify.bind(str(self.directory / "notify"))
        environment = {
            "PATH": ":".join((str(self._programs()), *([CHOSEN] if CHOSEN else []), _PATH)),
            "NOTIFY_SOCKET": notify.getsockname(),
        }
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self._before, program("containerd"), "-c", str(config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        with notify:
            assert select.select([notify], [], [], 60)[0], self.log.read_text()
            assert b"READY=1" in notify.recv(4096)

    def _programs(self):
        """A directory with this checkout's shim."""
        program = self.directory / "bin" / "containerd-shim-bufferzone-v2"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/python3 -IS\nimport os, sys\nwords = {WORDS!r}\n")
        with program.open("a") as file:
            file.write("os.execv(words[0], [*words, *sys.argv[1:]])\n")
        program.chmod(0o755)
        return program.parent

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
