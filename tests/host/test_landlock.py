"""Landlock around the file server and passt of this release: what they are for goes on, the rest is refused.

What each version of the kernel's interface allows and denies is in `unit/test_linux_landlock.py`.
"""

from __future__ import annotations

from pathlib import Path

from bufferzone.linux import landlock
from host.conftest import podman, run
from unit.test_linux_landlock import (  # noqa: F401 - the same, on this kernel
    test_who_has_a_tree_does_everything_below_it_and_changes_nothing_beside_it,
    test_who_is_restricted_reaches_no_port_no_abstract_socket_and_no_process_outside,
    test_who_was_given_ports_takes_no_other_and_reaches_all,
)

EVERYTHING = (
    "cd /v && mkdir a b && echo x >a/f && mv a/f b/g && ln b/g a/h && ln -s nowhere l && mkfifo p &&"
    " mv a c && echo y >>c/h && cat b/g && rm b/g && rmdir b && chmod 600 c/h && chown 7:8 c/h &&"
    " dd if=/dev/zero of=c/h bs=1 seek=5 count=0 2>/dev/null && wc -c <c/h"
)


def test_this_kernel_has_landlock():
    assert landlock.version() >= 2


def test_a_volume_takes_all_that_a_file_system_does(image, tmp_path: Path):
    said = podman("run", "--rm", "--volume", f"{tmp_path}:/v", image, "sh", "-c", EVERYTHING)
    assert said.split() == ["x", "y", "5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "l", "p"]


def test_what_is_mounted_below_a_volume_can_be_written(image, tmp_path: Path):
    """A path is walked up through the mounts to the tree, which is what the rule names."""
    (tmp_path / "inner").mkdir()
    run("mount", "-t", "tmpfs", "inner", str(tmp_path / "inner"))
    try:
        script = "echo z >/v/inner/new && mv /v/inner/new /v/inner/moved"
        podman("run", "--rm", "--volume", f"{tmp_path}:/v", image, "sh", "-c", script)
        assert (tmp_path / "inner" / "moved").read_text() == "z\n"
    finally:
        run("umount", str(tmp_path / "inner"))
