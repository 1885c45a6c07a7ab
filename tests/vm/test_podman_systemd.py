"""Podman with systemd as the first process of a container, whatever cgroups the host has."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.verbs import await_true

SYSTEMD = "/usr/lib/systemd/systemd"

pytestmark = [
    pytest.mark.vm,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not os.path.exists(SYSTEMD), reason="systemd is not installed"),
]

#: the second starts once the first has done its work, and says what systemd makes of that
UNITS = {
    "default.target": """
[Unit]
DefaultDependencies=no
Wants=reached.service told.service
""",
    "reached.service": """
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
MemoryMax=64M
ExecStart=/bin/sh -c 'cat /proc/self/cgroup >/srv/reached'
""",
    "told.service": """
[Unit]
DefaultDependencies=no
After=reached.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'systemctl is-active reached.service >/srv/part; mv /srv/part /srv/told'
""",
}
#: much, for the guest's CPU is emulated, and systemd is large
BOOTED_S = 600.0


@pytest.fixture
def image(podman, tmp_path: Path) -> Iterator[str]:
    """One whose programs are this host's, by a volume, with a systemd that has one service to start."""
    file = tmp_path / "image.tar"
    with tarfile.open(file, "w") as archive:
        for name in ("usr", "etc/systemd/system", "proc", "sys", "dev", "run", "tmp", "var", "srv"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("bin", "sbin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
        files = {f"etc/systemd/system/{name}": text for name, text in UNITS.items()}
        # without one it is a first boot, and systemd looks at every unit of /usr for one to enable
        files["etc/machine-id"] = "6c5b0d2f4a1e4b0f9d3c2a1908f7e6d5\n"
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    podman("import", file, "systemd-image")
    yield "systemd-image"
    podman("rmi", "--force", "systemd-image")


def test_systemd_is_the_first_process_starts_its_units_in_cgroups_and_is_stopped(
    podman, image: str, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    words = ("--name", "booted", "--systemd", "always", "--volume", "/usr:/usr:ro", "-v", f"{tmp_path}:/srv")
    podman("run", "--detach", *words, image, SYSTEMD)
    try:
        # asked for on the host: an exec each time would take the guest's only CPU from systemd
        await_true(told.exists, "the second unit", BOOTED_S)
        assert told.read_text() == "active\n"
        assert (tmp_path / "reached").read_text() == "0::/system.slice/reached.service\n"
        assert podman("exec", "booted", "/bin/cat", "/proc/1/comm").text == "systemd"
        podman("stop", "--time", "150", "booted")  # SIGRTMIN+3, which is a halt
        assert podman.inspect("booted")["State"]["ExitCode"] in (0, 130)
    finally:
        podman.any("rm", "--force", "--time", "0", "booted")
