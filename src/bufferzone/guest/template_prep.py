"""What the guest does before it becomes a template: load what clones would load each, free what they do not
need.

What is free the host takes out of the memory file, through the balloon: a smaller template is copied
faster. Runs in the VM only; everything here is optional, so failures are warnings.
"""

from __future__ import annotations

import os

from bufferzone.container import netfilter
from bufferzone.container.kernel_files import read
from bufferzone.container.loop import warn
from bufferzone.guest import nic
from bufferzone.guest.modprobe import modprobe

_MODULES = ("virtio_balloon", "overlay", *netfilter.MODULES)
#: for a machine whose root file system comes from a disk
_DISK_MODULES = ("virtio_blk", "erofs")
_VIRTIO, _BLOCK_DEVICE = "/sys/bus/virtio/devices", "0x0002"
#: modules that Python code of ours imports inside functions
_IMPORTS = ("_socket", "_posixsubprocess", "errno", "fcntl", "resource", "termios", "select")
#: what `zero_free_memory` leaves alone: below this the kernel looks for memory to take back
_KEPT_PAGES = 1024


def prepare() -> int:
    """Load modules and imports, then drop caches; returns the bytes of memory that are free."""
    for name in _IMPORTS:
        try:
            __import__(name)
        except ImportError:
            pass  # a guest without it does not use it
    for name in _MODULES + (_DISK_MODULES if _has_disk() else ()):
        modprobe(name)
    nic.load_unbound()
    os.sync()
    for path, text in (("/proc/sys/vm/drop_caches", "3"), ("/proc/sys/vm/compact_memory", "1")):
        try:
            with open(path, "w") as file:
                file.write(text)
        except OSError as error:
            warn(f"{path}: {error.strerror}")
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def zero_free_memory() -> None:
    """Overwrite what is free with zeros: what lies there was used once, and would be in every clone's memory.

    Meant for the moment when a balloon holds nearly everything that is free.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") - _KEPT_PAGES
    if free > 0:
        block = bytearray(free * os.sysconf("SC_PAGE_SIZE"))  # zero pages, which are given at the first write
        block[:: os.sysconf("SC_PAGE_SIZE")] = bytes(free)


def _has_disk() -> bool:
    try:
        names = os.listdir(_VIRTIO)
    except FileNotFoundError:
        return False
    return any(read(f"{_VIRTIO}/{name}/device").strip() == _BLOCK_DEVICE for name in names)
