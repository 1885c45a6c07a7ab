"""Gives NICs without a driver a MAC of their own: all clones of a template have its MACs otherwise.

The MAC lies in the device's configuration, which is written through a window in its PCI configuration: no
driver, no mapping of its memory. A device takes it as long as no driver has negotiated with it, and forgets
it when a driver lets go of it. A NIC that is on no PCI bus (Firecracker's) keeps the one it has. Runs in the
VM only. Source: virtio 1.2, 4.1.4.9 "PCI configuration access capability", 5.1.4 "Device configuration
layout".
"""

from __future__ import annotations

import os

from bufferzone.container.kernel_files import read
from bufferzone.container.loop import warn

_DEVICES = "/sys/bus/virtio/devices"
_NETWORK_CARD = 1
_VENDOR, _DEVICE_REGION, _WINDOW = 0x09, 4, 5
_CAPABILITIES = 0x34
_HEAD, _LENGTH = 64, 256
#: in the capability: the BAR's number, then the place in it and the length, 4 bytes each, then the data
_BAR, _PLACE, _DATA = 4, 8, 16

_nics: list[Nic] | None = None
#: the MAC that a NIC shows -> the one it had, by which the host knows it
_originals: dict[str, str] = {}


class Nic:
    """A NIC's `directory` below /sys/bus/virtio/devices, and where its MAC is reached from outside."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._path = os.path.join(os.path.dirname(os.path.realpath(directory)), "config")
        with open(self._path, "rb", buffering=0) as file:
            found = _capabilities(file.read(_LENGTH))
        self._window = found[_WINDOW][0]
        _, self._bar, self._place = found[_DEVICE_REGION]

    def change(self, mac: bytes) -> bytes:
        """Show this MAC from now on; returns the one it had. Raises OSError."""
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            before = b""
            for at, length in ((0, 4), (4, 2)):
                # the kernel splits it into words, from the first to the last: the data's moves what is there
                where = self._where(at, length)
                os.pwrite(fd, where, self._window + _BAR)
                before += os.pread(fd, length, self._window + _DATA)
                os.pwrite(fd, mac[at : at + length].ljust(4, b"\0"), self._window + _DATA)
            return before
        finally:
            os.close(fd)

    def _where(self, at: int, length: int) -> bytes:
        place = (self._place + at).to_bytes(4, "little")
        return bytes([self._bar, 0, 0, 0]) + place + length.to_bytes(4, "little")


def randomize_all() -> None:
    """Give every NIC that has no driver a random MAC, locally administered; a failure is a warning."""
    try:
        _randomize_all()
    except (OSError, LookupError) as error:
        warn(f"a NIC keeps the MAC of its template: {error}")


def _randomize_all() -> None:
    global _nics
    if _nics is None:
        _nics = _find()
    for nic in _nics:
        if not os.path.exists(f"{nic.directory}/driver"):
            mac = bytes([0x02]) + os.urandom(5)
            before = _text(nic.change(mac))
            _originals[_text(mac)] = _originals.pop(before, before)


def original(mac: str) -> str:
    """The MAC that a NIC had before it showed `mac`: the host knows it by that."""
    return _originals.get(mac, mac)


def _text(mac: bytes) -> str:
    return mac.hex(":")


def _find() -> list[Nic]:
    found = []
    for name in os.listdir(_DEVICES):
        directory = f"{_DEVICES}/{name}"
        if int(read(f"{directory}/device"), 16) == _NETWORK_CARD and _is_on_pci(directory):
            found.append(Nic(directory))
    return found


def _is_on_pci(directory: str) -> bool:
    return os.path.exists(os.path.join(os.path.dirname(os.path.realpath(directory)), "config"))


def _capabilities(config: bytes) -> dict[int, tuple[int, int, int]]:
    """virtio's capabilities in a PCI configuration: position, BAR and place by type, the first of each."""
    found: dict[int, tuple[int, int, int]] = {}
    at = config[_CAPABILITIES]
    for _ in range(_LENGTH // 4):  # a list without an end has no more than that
        if not _HEAD <= at <= len(config) - _DATA:
            break
        if config[at] == _VENDOR:
            place = int.from_bytes(config[at + _PLACE : at + _PLACE + 4], "little")
            found.setdefault(config[at + 3], (at, config[at + _BAR], place))
        at = config[at + 1]
    return found
