"""Runs a program in a mount namespace in which the host looks different: no such program, other settings.

    python3 private.py --hide /usr/bin/qemu-system-x86_64 --settings FILE -- bufferzone create ...

Nothing of it is seen outside. Settings are shown as /etc/bufferzone/config.toml.
"""

from __future__ import annotations

import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "src"))

from bufferzone.linux import mount as mnt
from bufferzone.linux.process import CLONE_NEWNS, unshare


def words(*, hide: tuple[str, ...] = (), settings: str = "") -> tuple[str, ...]:
    """The words to put in front of a command line."""
    flags = [word for path in hide for word in ("--hide", os.path.realpath(path))]
    flags += ["--settings", settings] if settings else []
    return (sys.executable, os.path.abspath(__file__), *flags, "--")


def show_settings(path: str) -> None:
    """A second /etc below an overlay: the file's directory is empty otherwise."""
    layer = tempfile.mkdtemp(prefix="bz-etc-")
    mnt.mount("layer", layer, "tmpfs", 0, "size=1m")
    os.mkdir(f"{layer}/bufferzone")
    with open(path, "rb") as source, open(f"{layer}/bufferzone/config.toml", "wb") as target:
        target.write(source.read())
    mnt.mount("etc", "/etc", "overlay", mnt.MS_RDONLY, f"lowerdir={layer}:/etc")
    mnt.unmount(layer, mnt.MNT_DETACH)
    os.rmdir(layer)


def main(argv: list[str]) -> None:
    unshare(CLONE_NEWNS)
    mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
    end = argv.index("--")
    for flag, value in zip(argv[:end:2], argv[1:end:2], strict=True):
        if flag == "--hide":
            mnt.mount("/dev/null", value, "", mnt.MS_BIND)
        else:
            show_settings(value)
    os.execv(argv[end + 1], argv[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
