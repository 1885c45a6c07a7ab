"""The real Firecracker in its jail, with a guest of a few instructions; usable KVM is not needed.

No distribution packages it: `bz setup --vmm firecracker PATH` takes one in, or the environment variable
BUFFERZONE_FIRECRACKER names one for these tests.
"""

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bufferzone import config, jail, vmmstore
from bufferzone.errors import HostError, UsageError, VmmError
from bufferzone.linux import kvm, nameless
from bufferzone.model import Confinement, Disk, Nic, Rates, Share, VmSpec
from bufferzone.network import namespace, tcfilter
from bufferzone.record import replace
from bufferzone.storage import ram
from bufferzone.vm import shape
from bufferzone.vm.size import VmSize
from bufferzone.vmm.firecracker import driver, place, process
from bufferzone.vmm.firecracker.process import Firecracker
from unit.test_vmm_qemu import tiny_kernel

UID = jail.UID_BASE + 2 * jail.UID_SLOTS - 6
SPEC = VmSpec(
    name="test",
    vcpus=1,
    memory_mib=128,
    accelerator="kvm",
    kernel="",
    initrd="",
    kernel_arguments=("x",),
    disks=(Disk(name="rootfs"),),
)
RATES = Rates(disk_bytes=8192, disk_ops=7, network_bytes=4096)


def program() -> str:
    """The Firecracker to test with, or nothing."""
    path = os.environ.get("BUFFERZONE_FIRECRACKER", "")
    try:
        return path or vmmstore.find("firecracker")
    except HostError:
        return ""


needs_firecracker = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/kvm") or not program(),
    reason="needs root, /dev/kvm and BUFFERZONE_FIRECRACKER",
)


@contextmanager
def started(directory: Path, kernel: bytes, **fields: object) -> Iterator[Firecracker]:
    (directory / "kernel").write_bytes(kernel)
    spec = replace(SPEC, kernel=str(directory / "kernel"), directory=str(directory / "vmm"), **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vmmstore, "find", lambda name: program())
        vmm = driver.start(spec, Confinement(uid=UID, gid=UID))
    try:
        vmm.watch()
        yield vmm
    finally:
        vmm.close()
    assert os.listdir(directory / "vmm") == []


@needs_firecracker
def test_a_kernel_that_is_none_is_refused_in_firecrackers_words_and_nothing_is_left(tmp_path: Path) -> None:
    with started(tmp_path, b"no kernel") as vmm:
        with pytest.raises(VmmError, match=r"^Firecracker refused PUT /actions: .*[Kk]ernel") as caught:
            vmm.greet(60)
        assert caught.value.code == "vmm-refused"
        assert vmm.version == "firecracker 1.12.1"


NOWHERE = "/run/nowhere"


@needs_firecracker
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/machine-config", {"vcpu_count": 0, "mem_size_mib": 128}),
        ("PUT", "/boot-source", {"kernel_image_path": NOWHERE}),
        (
            "PUT",
            "/drives/d",
            {"drive_id": "d", "path_on_host": NOWHERE, "is_root_device": False, "is_read_only": True},
        ),
        ("PATCH", "/drives/d", {"drive_id": "d", "path_on_host": NOWHERE}),
        ("PUT", "/network-interfaces/n", {"iface_id": "n", "host_dev_name": "none"}),
        ("PATCH", "/network-interfaces/n", {"iface_id": "n"}),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": f"{NOWHERE}/v"}),
        ("PUT", "/entropy", {"rate": 1}),
        ("PUT", "/actions", {"action_type": "Nothing"}),
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PUT", "/snapshot/create", {"snapshot_path": NOWHERE, "mem_file_path": NOWHERE}),
        (
            "PUT",
            "/snapshot/load",
            {"snapshot_path": NOWHERE, "mem_backend": {"backend_type": "File", "backend_path": NOWHERE}},
        ),
        ("GET", "/nothing", None),
    ],
)
def test_each_request_that_the_real_server_refuses_is_quoted_in_one_line(
    tmp_path: Path, method: str, path: str, body: object
) -> None:
    with started(tmp_path, b"") as vmm:
        vmm._meet(60)
        with pytest.raises(VmmError) as caught:
            vmm._api.call(method, path, body)
        assert caught.value.code == "vmm-refused"
        line = caught.value.line()
        assert line.startswith(f"Firecracker refused {method} {path}: ")
        assert "no reason given" not in line
        assert line.isprintable()


@needs_firecracker
def test_the_real_server_takes_every_device_and_its_tap_goes_with_it(tmp_path: Path) -> None:
    tap = tcfilter.park()
    try:
        nic = Nic(name="first", fd=tap.fd, mac="02:00:00:00:00:01")
        with started(tmp_path, tiny_kernel(), nics=(nic,), rates=RATES) as vmm:
            with pytest.raises(VmmError):  # it starts, and no agent calls
                vmm.greet(2)
            assert vmm.wait_exit(0) is None
            assert limits_of(vmm) == {"rx_rate_limiter": [4096, None], "tx_rate_limiter": [4096, None]}
            assert tcfilter.PARKED in _links(tap.namespace_fd)
            vmm.stop()
            vmm.resume()
            image = os.open(tmp_path / "kernel", os.O_RDONLY)
            vmm.insert_disk("rootfs", image)
            os.close(image)
            assert limits_of(vmm, "drives") == {"rate_limiter": [8192, 7]}
            vmm.kill()
            assert vmm.wait_exit(10) == -signal.SIGKILL
            assert "was killed (SIGKILL)" in vmm.failure("run the guest").line()
            assert tcfilter.PARKED not in _links(tap.namespace_fd)
    finally:
        os.close(tap.fd)
        os.close(tap.namespace_fd)


def limits_of(vmm: Firecracker, devices: str = "network-interfaces") -> dict[str, list[int | None]]:
    """Bytes and requests a second of its first such device, by the name of the limiter, as it says itself."""
    device = vmm._api.call("GET", "/vm/config")[devices][0]
    found = {}
    for name, limiter in device.items():
        if name.endswith("rate_limiter") and limiter:
            buckets = [limiter.get(kind) for kind in ("bandwidth", "ops")]
            assert all(bucket["refill_time"] == 1000 for bucket in buckets if bucket)
            found[name] = [bucket and bucket["size"] for bucket in buckets]
    return found


def _links(fd: int) -> str:
    def look() -> str:
        with open("/proc/thread-self/net/dev") as file:
            return file.read()

    return namespace.inside(fd, look)


@needs_firecracker
@pytest.mark.parametrize(("saved", "loaded"), [(Rates(), RATES), (RATES, Rates())])
def test_a_vm_is_saved_and_loaded_with_its_memory_mapped_and_limits_of_its_own(
    tmp_path: Path, monkeypatch, saved: Rates, loaded: Rates
) -> None:
    monkeypatch.setattr(process, "_CALL_S", 0.2)
    (tmp_path / "there").mkdir()
    memory = ram.create(str(tmp_path / "memory"), 128 << 20, UID)
    state = os.open(tmp_path / "state", os.O_RDWR | os.O_CREAT)
    tap = tcfilter.park()
    nic = Nic(name="first", fd=tap.fd, mac="02:00:00:00:00:01")
    in_file = {"memory": str(tmp_path / "memory"), "rates": saved}
    with started(tmp_path, tiny_kernel(), nics=(nic,), **in_file) as vmm:
        (tmp_path / "memory").unlink()  # its jail shows it
        with pytest.raises(VmmError):  # it starts, and no agent calls
            vmm.greet(2)
        assert vmm.agent is None
        with open(tmp_path / "kernel", "rb") as image:
            vmm.insert_disk("rootfs", image.fileno())
        vmm.save(state)
        vmm.agent, theirs = socket.socketpair()
        vmm.resume()  # nobody calls again: the connection that is there goes on
        assert vmm.agent.fileno() >= 0
        theirs.close()
    copied = ram.create(str(tmp_path / "copied"), 128 << 20, UID)
    assert ram.copy(memory, copied)
    other = tcfilter.park()
    nic = replace(nic, fd=other.fd)
    with started(tmp_path / "there", b"", nics=(nic,), mapped_memory=copied, rates=loaded) as vmm:
        (tmp_path / "copied").unlink()
        vmm.greet(60)
        vmm.load(state)
        network = [4096, None]
        assert limits_of(vmm) == (
            {"rx_rate_limiter": network, "tx_rate_limiter": network} if loaded == RATES else {}
        )
        with open(tmp_path / "kernel", "rb") as image:
            vmm.insert_disk("rootfs", image.fileno())
        assert limits_of(vmm, "drives") == ({"rate_limiter": [8192, 7]} if loaded == RATES else {})
        assert tcfilter.PARKED in _links(other.namespace_fd)
        with pytest.raises(VmmError, match="did not call") as caught:
            vmm.resume()
        assert caught.value.code == "agent-timeout"
    # its guest never called: who starts another VM in its place has the tap
    assert stat.S_ISCHR(os.fstat(other.fd).st_mode)
    assert tcfilter.PARKED in _links(other.namespace_fd)
    with started(tmp_path, b"no kernel", nics=(nic,)) as vmm, pytest.raises(VmmError, match="PUT /actions"):
        vmm.greet(60)
    for fd in (memory, copied, state, tap.fd, tap.namespace_fd, other.fd, other.namespace_fd):
        os.close(fd)


def sealed(state: bytes) -> bytes:
    """The state with its checksum: CRC-64, Jones' polynomial, as Firecracker ends a file with it."""
    crc = 0
    for byte in state:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return state + crc.to_bytes(8, "little")


def refused_load(directory: Path, memory: int, data: bytes) -> str:
    """The one line that such a device state is refused with."""
    state = os.open(directory / "changed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(state, data)
    try:
        with started(directory, b"", mapped_memory=memory) as vmm:
            vmm.greet(60)
            with pytest.raises(VmmError) as caught:
                vmm.load(state)
    finally:
        os.close(state)
    line = caught.value.line()
    assert line.startswith("Firecracker refused PUT /snapshot/load: ")
    assert line.isprintable()
    return line


@needs_firecracker
def test_a_state_of_another_version_and_one_that_is_none_are_refused_in_one_line(tmp_path: Path) -> None:
    memory = ram.create(str(tmp_path / "memory"), 128 << 20, UID)
    with started(tmp_path, tiny_kernel(), memory=str(tmp_path / "memory")) as vmm:
        with pytest.raises(VmmError):  # it starts, and no agent calls
            vmm.greet(2)
        state = os.open(tmp_path / "state", os.O_RDWR | os.O_CREAT)
        vmm.save(state)
    data = os.pread(state, place.MOST_STATE, 0)
    os.close(state)
    assert sealed(data[:-8]) == data
    version = data[16:21]  # after what it is and the length; that of the format
    assert version == b"6.0.0"
    other = sealed(data[:16] + b"9.0.0" + data[21:-8])
    assert "9.0.0" in refused_load(tmp_path, memory, other)
    assert refused_load(tmp_path, memory, os.urandom(10_000))
    os.close(memory)


@needs_firecracker
def test_what_it_cannot_do_it_says(tmp_path: Path) -> None:
    with started(tmp_path, b"no kernel") as vmm:
        for action in (
            lambda: vmm.plug_share(Share(tag="t", fd=0)),
            lambda: vmm.plug_nic(0, number=1, mac=""),
        ):
            with pytest.raises(VmmError, match="Firecracker cannot") as caught:
                action()
            assert caught.value.code == "vmm-feature"


@needs_firecracker
def test_a_crash_is_told_as_one(tmp_path: Path) -> None:
    with started(tmp_path, b"no kernel") as vmm:
        with pytest.raises(VmmError):
            vmm.greet(60)
        os.kill(vmm.pid, signal.SIGILL)
        assert vmm.wait_exit(10) == 157
        assert f"crashed (signal {int(signal.SIGILL)})" in vmm.failure("run the guest").line()


@needs_firecracker
def test_a_path_of_the_state_directory_may_be_longer_than_a_sockets(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120) / ("e" * 120)
    long.mkdir(parents=True)
    with started(long, b"no kernel") as vmm, pytest.raises(VmmError, match="refused PUT /actions"):
        vmm.greet(60)


@needs_firecracker
def test_another_version_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch) -> None:
    known = replace(vmmstore.KNOWN["firecracker"], versions=("9.9",))
    monkeypatch.setitem(vmmstore.KNOWN, "firecracker", known)
    with started(tmp_path, b"no kernel") as vmm, pytest.raises(VmmError) as caught:
        vmm.greet(60)
    assert caught.value.line().startswith("Firecracker 1.12.1 is not one that was tried: 9.9 (hint: bz setup")


@needs_firecracker
def test_a_program_is_taken_in_with_its_version_and_another_one_is_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(config, "default_image_store", lambda: str(tmp_path / "images"))
    taken, version = vmmstore.take("firecracker", program())
    assert (taken, version) == (str(tmp_path / "vmm" / "firecracker"), "1.12.1")
    assert vmmstore.find("firecracker") == taken
    monkeypatch.setitem(
        vmmstore.KNOWN, "firecracker", replace(vmmstore.KNOWN["firecracker"], versions=("9.9",))
    )
    with pytest.raises(HostError, match=r"1\.12\.1 is not one that was tried"):
        vmmstore.take("firecracker", program())
    assert os.listdir(tmp_path / "vmm") == ["firecracker"]


def test_what_is_no_program_is_not_taken_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(config, "default_image_store", lambda: str(tmp_path / "images"))
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    for path, problem in ((script, "not a program"), (tmp_path / "none", "No such file")):
        with pytest.raises(HostError, match=problem):
            vmmstore.take("firecracker", str(path))
    with pytest.raises(UsageError, match="not a VMM that is brought"):
        vmmstore.take("qemu", str(script))
    assert os.listdir(tmp_path / "vmm") == []


@pytest.mark.parametrize("policy", ["allow", "warn", "require"])
def test_without_usable_kvm_one_line_says_why_and_names_qemu(
    tmp_path: Path, monkeypatch, policy: str
) -> None:
    image = shape.ImageRef(digest="d", directory="/i", kernel="/i/vmlinux", initrd="/i/initrd")
    monkeypatch.setattr(shape, "_image", lambda settings, log: image)
    monkeypatch.setattr(kvm, "cached_probe", lambda path: kvm.Probe(usable=False, reason="it interprets"))
    settings = config.Settings(vmm="firecracker", kvm=policy, rootfs="block")
    with pytest.raises(HostError) as caught:
        shape.describe(settings, VmSize(vcpus=1, memory_mib=256), str(tmp_path), print, nic=False)
    line = "Firecracker runs with KVM alone: it interprets (hint: vmm = qemu runs without)"
    assert caught.value.line() == line


def test_the_driver_itself_refuses_what_a_plan_should_not_have_come_to() -> None:
    share, nic = Share(tag="t", fd=0), Nic(name="n", fd=0, mac="")
    for fields in (
        {"accelerator": "tcg"},
        {"shares": (share,)},
        {"nics": (replace(nic, is_tap=False),)},
        {"nics": (nic, nic)},
    ):
        with pytest.raises(HostError, match="Firecracker ") as caught:
            driver.check(replace(SPEC, **fields))
        assert caught.value.code == "vmm-feature"
    driver.check(SPEC)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")
def test_an_image_that_the_vmms_user_cannot_read_is_refused_by_its_mode(tmp_path: Path) -> None:
    with ExitStack() as stack:
        here = place.Place(replace(SPEC, directory=str(tmp_path / "vmm")), UID)
        stack.callback(here.close)
        fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, fd)
        with pytest.raises(HostError, match="mode 600"):
            here.show("rootfs", fd)
        os.fchmod(fd, 0o644)
        os.write(fd, b"image")
        here.show("rootfs", fd)
        assert (tmp_path / "vmm" / "disk-rootfs").read_bytes() == b"image"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")
def test_an_image_without_a_name_is_shown_and_has_none_afterwards(tmp_path: Path) -> None:
    images = tmp_path / "images"
    with ExitStack() as stack:
        here = place.Place(replace(SPEC, directory=str(tmp_path / "vmm")), UID)
        stack.callback(here.close)
        fd = nameless.create(str(images))
        stack.callback(os.close, fd)
        os.fchmod(fd, 0o444)
        os.write(fd, b"packed")
        here.show("rootfs", fd)
        assert (tmp_path / "vmm" / "disk-rootfs").read_bytes() == b"packed"
        assert not list(images.iterdir())
