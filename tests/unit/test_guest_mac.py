"""NICs get a MAC of their own through a window in their PCI configuration; here that is a file."""

from __future__ import annotations

import pytest

from bufferzone.guest import mac

#: as QEMU 7.2 lays out virtio-net-pci: position, next, length, type, BAR, place
CAPABILITIES = [
    (0x98, 0x84, 16, 1, 4, 0x0000),
    (0x84, 0x70, 20, 5, 0, 0x0000),
    (0x70, 0x60, 16, 2, 4, 0x3000),
    (0x60, 0x50, 16, 4, 4, 0x2000),
    (0x50, 0x40, 16, 3, 4, 0x1000),
]
WINDOW = 0x84


def config():
    data = bytearray(256)
    data[0x34] = 0xDC
    data[0xDC : 0xDC + 2] = bytes([0x11, 0x98])  # MSI-X comes first
    for at, following, length, kind, bar, place in CAPABILITIES:
        data[at : at + 12] = bytes([9, following, length, kind, bar, 0, 0, 0]) + place.to_bytes(4, "little")
    return bytes(data)


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """/sys/bus/virtio/devices with a NIC and a disk."""
    place = tmp_path / "devices"
    place.mkdir()
    for name, kind in (("virtio0", "0x0001"), ("virtio1", "0x0002")):
        directory = tmp_path / "pci" / name / name
        directory.mkdir(parents=True)
        (directory / "device").write_text(f"{kind}\n")
        (directory.parent / "config").write_bytes(config())
        (place / name).symlink_to(directory)
    monkeypatch.setattr(mac, "_DEVICES", str(place))
    monkeypatch.setattr(mac, "_nics", None)
    monkeypatch.setattr(mac, "_originals", {})
    return tmp_path / "pci"


def test_the_capabilities_are_found_behind_others():
    found = mac._capabilities(config())
    assert found[5] == (WINDOW, 0, 0)
    assert found[4] == (0x60, 4, 0x2000)
    assert set(found) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("data", [b"", bytes(64), bytes(256), b"\xff" * 256, (b"\x09\x50\x00\x07" * 64)])
def test_a_configuration_that_is_none_has_none_and_ends(data):
    assert 4 not in mac._capabilities(data.ljust(256, b"\0"))


def test_a_nic_gets_a_mac_through_the_window_and_a_disk_nothing(devices, monkeypatch):
    moved = []
    write = mac.os.pwrite

    def pwrite(fd, data, at):
        moved.append((at - WINDOW, data))
        return write(fd, data, at)

    monkeypatch.setattr(mac.os, "pwrite", pwrite)
    monkeypatch.setattr(mac.os, "urandom", lambda length: bytes(range(1, 1 + length)))
    mac.randomize_all()
    assert moved == [
        (4, bytes([4, 0, 0, 0]) + (0x2000).to_bytes(4, "little") + (4).to_bytes(4, "little")),
        (16, bytes([2, 1, 2, 3])),
        (4, bytes([4, 0, 0, 0]) + (0x2004).to_bytes(4, "little") + (2).to_bytes(4, "little")),
        (16, bytes([4, 5, 0, 0])),
    ]
    assert (devices / "virtio1" / "config").read_bytes() == config()


def test_the_host_finds_the_nic_by_the_name_it_gave_it_however_often_it_changes(devices, monkeypatch):
    shown = [bytes.fromhex("02627a000001")]

    def change(nic, mac):
        shown.append(mac)
        return shown[-2]

    monkeypatch.setattr(mac.Nic, "change", change)
    for _ in range(3):
        mac.randomize_all()
        now = shown[-1].hex(":")
        assert now.startswith("02:")
        assert mac.original(now) == "02:62:7a:00:00:01"
    assert len(set(shown)) == 4
    assert mac.original("02:00:00:00:00:77") == "02:00:00:00:00:77"


def test_a_nic_with_a_driver_is_left_alone(devices):
    (devices / "virtio0" / "virtio0" / "driver").mkdir()
    mac.randomize_all()
    assert mac._originals == {}
    assert (devices / "virtio0" / "config").read_bytes() == config()


def test_a_nic_without_the_window_is_a_warning_and_no_failure(devices, capfd):
    (devices / "virtio0" / "config").write_bytes(bytes(256))
    mac.randomize_all()
    assert "keeps the MAC of its template" in capfd.readouterr().err


def test_a_nic_on_no_pci_bus_keeps_its_mac_without_a_word(devices, capfd, tmp_path):
    directory = tmp_path / "platform" / "LNRO0005:01" / "virtio2"
    directory.mkdir(parents=True)
    (directory / "device").write_text("0x0001\n")
    (tmp_path / "devices" / "virtio2").symlink_to(directory)
    mac.randomize_all()
    assert len(mac._originals) == 1  # the one that is on the PCI bus
    assert capfd.readouterr().err == ""
