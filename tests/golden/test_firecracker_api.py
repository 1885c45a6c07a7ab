"""What is asked of Firecracker, word by word. A change here is a change of the wall: say why."""

from __future__ import annotations

import json

from bufferzone.model import Disk, Nic, Rates, VmSpec
from bufferzone.record import replace
from bufferzone.vmm.firecracker import requests

SPEC = VmSpec(
    name="web",
    vcpus=2,
    memory_mib=256,
    accelerator="kvm",
    kernel="/images/vmlinux",
    initrd="/images/initrd",
    kernel_arguments=("console=ttyS0", "panic=-1"),
    disks=(Disk(name="rootfs"),),
    nics=(Nic(name="first", fd=9, mac="02:62:7a:00:00:01"),),
)
BOOT = """
PUT /machine-config {"vcpu_count": 2, "mem_size_mib": 256, "smt": false}
PUT /boot-source {"kernel_image_path": "/boot/kernel", "boot_args": "console=ttyS0 panic=-1 \
bufferzone.channel=vsock reboot=k i8042.noaux i8042.nomux i8042.dumbkbd", "initrd_path": "/boot/initrd"}
PUT /drives/rootfs {"drive_id": "rootfs", "path_on_host": "/run/disk-rootfs", "is_root_device": false, \
"is_read_only": true}
PUT /network-interfaces/first {"iface_id": "first", "guest_mac": "02:62:7a:00:00:01", \
"host_dev_name": "bz0", "rx_rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}, \
"tx_rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}}
PUT /vsock {"guest_cid": 3, "uds_path": "/run/vsock"}
PUT /entropy {}
PUT /actions {"action_type": "InstanceStart"}
"""
TEMPLATE = """
PUT /snapshot/create {"snapshot_type": "Full", "snapshot_path": "/run/state", "mem_file_path": "/memory"}
PUT /snapshot/load {"snapshot_path": "/run/state", "mem_backend": {"backend_type": "File", "backend_path": \
"/saved-memory"}, "enable_diff_snapshots": false, "resume_vm": false, "network_overrides": \
[{"iface_id": "first", "host_dev_name": "bz0"}]}
"""


def lines(*asked: requests.Request) -> list[str]:
    return [f"{method} {path} {json.dumps(body)}" for method, path, body in asked]


def test_a_boot_is_exactly_these_requests():
    assert lines(*requests.boot(SPEC, ("bz0",))) == BOOT.strip().splitlines()


def test_nothing_asks_for_the_metadata_service_or_for_a_program_without_its_filters():
    everything = " ".join([*requests.arguments("/firecracker"), *lines(*requests.boot(SPEC, ("bz0",)))])
    assert "mmds" not in everything
    assert "seccomp" not in everything


def test_a_template_is_saved_whole_and_mapped_by_who_loads_it():
    assert lines(requests.save(), requests.load(SPEC, ("bz0",))) == TEMPLATE.strip().splitlines()


INSERT = """
PATCH /drives/rootfs {"drive_id": "rootfs", "path_on_host": "/run/disk-rootfs", "rate_limiter": \
{"bandwidth": {"size": 0, "refill_time": 0}, "ops": {"size": 0, "refill_time": 0}}}
PATCH /vm {"state": "Paused"}
PATCH /vm {"state": "Resumed"}
"""


def test_what_is_asked_of_one_that_runs():
    insert = requests.insert("rootfs", SPEC.rates)
    assert lines(insert, requests.run(False), requests.run(True)) == INSERT.strip().splitlines()


LIMITED = """
PUT /network-interfaces/first {"iface_id": "first", "guest_mac": "02:62:7a:00:00:01", \
"host_dev_name": "bz0", "rx_rate_limiter": {"bandwidth": {"size": 3072, "refill_time": 1000}}, \
"tx_rate_limiter": {"bandwidth": {"size": 3072, "refill_time": 1000}}}
PATCH /network-interfaces/first {"iface_id": "first", \
"rx_rate_limiter": {"bandwidth": {"size": 3072, "refill_time": 1000}}, \
"tx_rate_limiter": {"bandwidth": {"size": 3072, "refill_time": 1000}}}
PATCH /drives/rootfs {"drive_id": "rootfs", "path_on_host": "/run/disk-rootfs", "rate_limiter": \
{"bandwidth": {"size": 1048576, "refill_time": 1000}, "ops": {"size": 50, "refill_time": 1000}}}
"""
FREE = """
PATCH /network-interfaces/first {"iface_id": "first", \
"rx_rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}, \
"tx_rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}}
"""


def test_limits_are_buckets_of_one_second_and_those_that_were_saved_are_replaced():
    limited = replace(SPEC, rates=Rates(disk_bytes=1 << 20, disk_ops=50, network_bytes=3 << 10))
    (nic,) = [each for each in requests.boot(limited, ("bz0",)) if "limiter" in str(each)]
    loaded = (*requests.limit(limited), requests.insert("rootfs", limited.rates))
    assert lines(nic, *loaded) == LIMITED.strip().splitlines()
    assert lines(*requests.limit(SPEC)) == FREE.strip().splitlines()
