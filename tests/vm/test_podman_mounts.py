"""Mounts of `podman run` that are neither plain volumes nor the guest's own, devices, a user namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A directory with a tmpfs mounted on `inner`."""
    (tmp_path / "data" / "inner").mkdir(parents=True)
    inner = str(tmp_path / "data" / "inner")
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    yield tmp_path / "data"
    subprocess.run(["umount", inner], check=True)


def run(podman, script: str, *options: object) -> list[str]:
    return podman("run", "--rm", *options, podman.image, "sh", "-c", script).lines


def test_an_overlay_volume_is_made_on_the_host_and_keeps_its_source_as_it_was(podman, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old\n")
    script = "cat /o/file; echo new >/o/file; cat /o/file; touch /o/more"
    assert run(podman, script, "-v", f"{tmp_path}:/o:O") == ["old", "new"]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old\n"]


def test_a_read_only_volume_is_so_on_top_and_not_below(podman, nested: Path) -> None:
    script = (
        "touch /r/x 2>/dev/null || echo refused; echo text >/r/inner/y; grep -c ' /r/inner ' /proc/mounts"
    )
    assert run(podman, script, "-v", f"{nested}:/r:ro,rslave") == ["refused", "1"]
    assert (nested / "inner" / "y").read_text() == "text\n"


def test_a_path_of_the_kernel_is_the_guests_however_it_is_spelt(podman, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/sys")
    options = ["--hostname", "inside", "-v", f"{tmp_path}/link/kernel:/k:ro", "-v", "/dev/shm:/other"]
    assert run(podman, "cat /k/ostype; grep -c '^tmpfs /other ' /proc/mounts", *options) == ["Linux", "1"]


@pytest.mark.parametrize("options", ["ro,rslave", "rslave"])
def test_below_the_hosts_root_the_kernels_own_is_the_guests(podman, options: str) -> None:
    script = """
        cat /host/proc/sys/kernel/hostname /host/proc/1/comm
        cmp /host/proc/version /proc/version && echo same
        ls /host/sys/fs/cgroup | grep -c cgroup.procs
        ls /host/sys/class/net
        stat -c %t:%T /host/dev/null
        head -c 2 /host/dev/zero | wc -c
        grep -c . /host/etc/os-release
    """
    found = run(podman, script, "--hostname", "inside", "--network", "none", "-v", f"/:/host:{options}")
    lines = Path("/etc/os-release").read_text().splitlines()
    assert found == ["inside", "sh", "same", "1", "lo", "1:3", "2", str(sum(1 for line in lines if line))]


def test_a_device_outside_dev_is_the_guests(podman) -> None:
    script = "stat -c '%F %t:%T' /null /srv/zero; echo x >/null && echo written"
    found = run(podman, script, "--device", "/dev/null:/null", "--device", "/dev/zero:/srv/zero")
    assert found == ["character special file 1:3", "character special file 1:5", "written"]


def test_who_may_make_devices_makes_them_in_memory_and_not_on_what_is_the_hosts(
    podman, tmp_path: Path
) -> None:
    script = """
        mknod /dev/mine c 1 5 && head -c 2 /dev/mine | wc -c
        for place in /srv /v /o /t; do mkdir -p $place; mknod $place/node c 1 5 2>&1; done
        mkfifo /srv/fifo /v/fifo
        stat -c '%F %t:%T' /t/node /srv/fifo /v/fifo
        head -c 2 /t/node 2>&1 || true
    """
    options = ["-v", f"{tmp_path}:/v", "-v", f"{tmp_path}:/o:O", "--tmpfs", "/t"]
    assert run(podman, script, "--cap-add", "MKNOD", *options) == [
        "2",
        *(f"mknod: {place}/node: Operation not permitted" for place in ("/srv", "/v", "/o")),
        "character special file 1:5",
        "fifo 0:0",
        "fifo 0:0",
        "head: /t/node: Permission denied",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_user_namespace_has_the_sysctls_of_the_network(podman) -> None:
    options = ["--uidmap", "0:100000:65536", "--sysctl", "net.ipv4.ping_group_range=0 5"]
    found = run(podman, "id -u; cat /proc/sys/net/ipv4/ping_group_range /proc/self/uid_map", *options)
    assert [line.split() for line in found] == [["0"], ["0", "5"], ["0", "100000", "65536"]]
