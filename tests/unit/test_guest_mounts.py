"""Mounts, devices, masked and read-only paths of a container, seen from inside and from its rootfs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.errors import GuestError, SpecError
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    (path / "below").mkdir(parents=True)
    (path / "file").write_text("from the volume\n")
    return path


def with_mount(rootfs: Path, script: str, destination: str, *options: str, **mount: Any) -> dict[str, Any]:
    spec = make_spec(rootfs, "sh", "-c", script)
    spec["mounts"].append({"destination": destination, "options": list(options), **mount})
    return spec


def flags_at(guest: Guest, spec: dict[str, Any], path: str) -> set[str]:
    """The mount options that /proc/self/mountinfo shows for `path`, propagation included."""
    spec["process"]["args"] = ["cat", "/proc/self/mountinfo"]
    rows = [line.split() for line in guest.run(spec)[1].splitlines()]
    row = next(row for row in reversed(rows) if row[4] == path)
    end = row.index("-")
    return {*row[5].split(","), *row[6:end], *row[end + 3].split(",")}


def test_a_writable_bind_is_the_very_directory(guest: Guest, rootfs: Path, volume: Path) -> None:
    spec = with_mount(
        rootfs, "cat /data/file; echo new >/data/made", "/data", "rbind", type="bind", source=str(volume)
    )
    assert guest.run(spec)[1] == "from the volume\n"
    assert (volume / "made").read_text() == "new\n"
    assert (rootfs / "data").is_dir()


def test_a_read_only_bind_cannot_be_written(guest: Guest, rootfs: Path, volume: Path) -> None:
    spec = with_mount(rootfs, "touch /data/made", "/data", "bind", "ro", source=str(volume))
    code, _, err = guest.run(spec)
    assert code == 1
    assert "Read-only file system" in err


def test_a_source_that_the_vm_does_not_have_is_said_to_be_missing_there(guest: Guest, rootfs: Path) -> None:
    with pytest.raises(GuestError, match=r'error mounting "/dev/nosuch" to rootfs at "/x": there is no /dev'):
        guest.create("c", with_mount(rootfs, "", "/x", "bind", source="/dev/nosuch"))


def test_a_read_only_dev_has_its_mounts_devices_and_links(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "touch /dev/x; echo $?; touch /dev/shm/x; echo $?; cat </dev/null")
    spec["mounts"][1]["options"].append("ro")
    _, out, err = guest.run(spec)
    assert out == "1\n0\n"
    assert "Read-only file system" in err
    assert "ro" in flags_at(guest, spec, "/dev")
    assert "rw" in flags_at(guest, spec, "/dev/shm")


@pytest.mark.parametrize("propagation", ["shared", "slave", "private", "unbindable"])
def test_a_bind_has_the_propagation_that_was_asked_for(
    guest: Guest, rootfs: Path, volume: Path, propagation: str
) -> None:
    spec = with_mount(rootfs, "", "/etc", "bind", propagation, source=str(volume))
    flags = flags_at(guest, spec, "/etc")
    assert any(flag.startswith("shared:") for flag in flags) == (propagation == "shared")
    assert ("unbindable" in flags) == (propagation == "unbindable")


def test_a_file_is_bound_onto_a_file_that_is_made(guest: Guest, rootfs: Path, volume: Path) -> None:
    spec = with_mount(rootfs, "cat /etc/deep/name", "/etc/deep/name", "bind", source=str(volume / "file"))
    assert guest.run(spec)[1] == "from the volume\n"
    assert (rootfs / "etc/deep/name").read_text() == ""


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../..{outside}", "/link2"])
def test_a_destination_that_is_a_symlink_does_not_lead_out_of_the_root(
    guest: Guest, rootfs: Path, volume: Path, tmp_path: Path, target: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "link").symlink_to(target.format(outside=outside))
    (rootfs / "link2").symlink_to(str(outside))
    spec = with_mount(rootfs, "cat /link/deep/file", "/link/deep", "bind", source=str(volume))
    assert guest.run(spec)[1] == "from the volume\n"
    assert list(outside.iterdir()) == []
    assert (rootfs / str(outside).lstrip("/") / "deep").is_dir()


def test_a_file_destination_that_is_a_dangling_symlink_stays_inside(
    guest: Guest, rootfs: Path, volume: Path, tmp_path: Path
) -> None:
    (rootfs / "etc/resolv.conf").symlink_to(str(tmp_path / "escaped"))
    spec = with_mount(rootfs, "cat /etc/resolv.conf", "/etc/resolv.conf", "bind", source=str(volume / "file"))
    assert guest.run(spec)[1] == "from the volume\n"
    assert not (tmp_path / "escaped").exists()


def test_a_destination_through_a_magic_link_of_proc_is_refused(
    guest: Guest, rootfs: Path, volume: Path
) -> None:
    (rootfs / "link").symlink_to("/proc/1/root")
    spec = with_mount(rootfs, "true", "/link/tmp/escape", "bind", source=str(volume))
    with pytest.raises(GuestError, match="/link/tmp/escape"):
        guest.create("c", spec)
    assert not os.path.exists("/tmp/escape")


def test_a_symlink_that_points_at_itself_is_an_error(guest: Guest, rootfs: Path, volume: Path) -> None:
    (rootfs / "loop").symlink_to("loop")
    with pytest.raises(GuestError, match="too many levels of symbolic links"):
        guest.create("c", with_mount(rootfs, "true", "/loop/x", "bind", source=str(volume)))


@pytest.mark.parametrize("kind", ["proc", "sysfs"])
def test_proc_and_sysfs_are_not_mounted_through_a_symlink(guest: Guest, rootfs: Path, kind: str) -> None:
    (rootfs / "target").mkdir()
    (rootfs / "sly").symlink_to("target")
    with pytest.raises(GuestError, match=f'filesystem "{kind}" must be mounted on ordinary directory'):
        guest.create("c", with_mount(rootfs, "true", "/sly", type=kind, source=kind))


def test_a_missing_source_is_named_with_its_destination(guest: Guest, rootfs: Path) -> None:
    with pytest.raises(GuestError) as caught:
        guest.create("c", with_mount(rootfs, "true", "/data", "bind", source="/no/where"))
    assert 'error mounting "/no/where" to rootfs at "/data"' in caught.value.message
    assert caught.value.message.endswith(": there is no /no/where in the guest")


def test_the_options_of_a_tmpfs_are_flags_and_data(guest: Guest, rootfs: Path) -> None:
    spec = with_mount(
        rootfs,
        "",
        "/scratch",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "size=64k",
        "mode=0701",
        type="tmpfs",
        source="x",
    )
    assert {"rw", "nosuid", "nodev", "noexec", "noatime", "size=64k", "mode=701"} <= flags_at(
        guest, spec, "/scratch"
    )


def test_a_later_option_wins_over_an_earlier_one(guest: Guest, rootfs: Path, volume: Path) -> None:
    spec = with_mount(rootfs, "", "/data", "bind", "ro", "nosuid", "rw", "suid", source=str(volume))
    assert flags_at(guest, spec, "/data").isdisjoint({"ro", "nosuid"})


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("noatime",), {"noatime"}),
        (("strictatime",), {"rw"}),
        (("nodiratime",), {"nodiratime"}),
        (("nosuid", "nodev", "noexec"), {"nosuid", "nodev", "noexec", "rw"}),
        (("rro",), {"ro"}),
        (("rnosuid", "rnoexec"), {"nosuid", "noexec"}),
        (("nosymfollow",), {"nosymfollow"}),
    ],
)
def test_every_flag_of_a_bind_is_shown_by_the_kernel(
    guest: Guest, rootfs: Path, volume: Path, options: tuple[str, ...], shown: set[str]
) -> None:
    spec = with_mount(rootfs, "", "/data", "rbind", *options, source=str(volume))
    assert shown <= flags_at(guest, spec, "/data")


def test_strictatime_clears_relatime(guest: Guest, rootfs: Path, volume: Path) -> None:
    spec = with_mount(rootfs, "", "/data", "bind", "strictatime", source=str(volume))
    assert flags_at(guest, spec, "/data").isdisjoint({"relatime", "noatime"})


def test_rro_reaches_mounts_below_and_ro_does_not(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    for option, below in (("rro", "ro"), ("ro", "rw")):
        spec = make_spec(rootfs)
        spec["mounts"].append(
            {"destination": "/outer", "type": "bind", "source": "/dev", "options": ["rbind", option]}
        )
        assert below in flags_at(guest, spec, "/outer/pts")


@pytest.mark.parametrize(
    ("option", "shown"),
    [("rshared", "shared:"), ("rslave", ""), ("rprivate", ""), ("runbindable", "unbindable")],
)
def test_propagation_is_that_of_the_options(
    guest: Guest, rootfs: Path, volume: Path, option: str, shown: str
) -> None:
    flags = flags_at(guest, with_mount(rootfs, "", "/data", "rbind", option, source=str(volume)), "/data")
    found = [flag for flag in flags if flag.startswith(("shared:", "unbindable"))]
    assert [flag for flag in found if shown and flag.startswith(shown)] == found
    assert bool(found) == bool(shown)


@pytest.mark.parametrize("propagation", ["shared", "rshared", "slave", "private", "unbindable"])
def test_the_root_has_the_propagation_of_the_spec(guest: Guest, rootfs: Path, propagation: str) -> None:
    spec = make_spec(rootfs)
    spec["linux"]["rootfsPropagation"] = propagation
    flags = flags_at(guest, spec, "/")
    assert any(flag.startswith("shared:") for flag in flags) == ("shared" in propagation)
    spec["linux"]["rootfsPropagation"] = "viral"
    with pytest.raises(SpecError, match=r"linux\.rootfsPropagation: unknown value: viral"):
        guest.create("c", spec)


def test_a_mount_of_the_container_is_not_seen_outside(guest: Guest, rootfs: Path) -> None:
    def mounted() -> list[str]:
        """Below the root file system alone: other programs of this machine mount, too."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if str(rootfs) in line.split()[4]]

    before = mounted()
    spec = make_spec(rootfs, "cat")
    spec["linux"]["rootfsPropagation"] = "rshared"
    guest.create("c", spec)
    guest.start("c")
    assert mounted() == before


def test_remount_changes_what_is_mounted_already(guest: Guest, rootfs: Path) -> None:
    spec = with_mount(rootfs, "", "/dev/shm", "remount", "ro", type="tmpfs", source="x")
    assert "ro" in flags_at(guest, spec, "/dev/shm")


def test_tmpcopyup_starts_with_what_the_image_has(guest: Guest, rootfs: Path) -> None:
    (rootfs / "var/lib").mkdir(parents=True)
    (rootfs / "var/lib/file").write_text("content\n")
    (rootfs / "var/lib/file").chmod(0o640)
    os.chown(rootfs / "var/lib/file", 12, 34)
    (rootfs / "var/link").symlink_to("lib/file")
    script = "cat /var/link; stat -c %u:%g:%a /var/lib/file; echo changed >/var/lib/file"
    spec = with_mount(rootfs, script, "/var", "tmpcopyup", type="tmpfs", source="tmpfs")
    assert guest.run(spec)[1] == "content\n12:34:640\n"
    assert (rootfs / "var/lib/file").read_text() == "content\n"


def test_a_tmpfs_has_the_mode_of_the_directory_below_it(guest: Guest, rootfs: Path) -> None:
    (rootfs / "tmp").chmod(0o1777)
    spec = with_mount(rootfs, "stat -c %a /tmp", "/tmp", type="tmpfs", source="tmpfs")
    assert guest.run(spec)[1] == "1777\n"


def test_any_file_system_of_the_kernel_can_be_mounted(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("lower\n")
    data = [f"lowerdir={tmp_path}/lower", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"]
    spec = with_mount(
        rootfs, "cat /over/file; echo up >/over/new", "/over", *data, type="overlay", source="overlay"
    )
    try:
        assert guest.run(spec)[1] == "lower\n"
    except GuestError as error:
        if "no such device" in error.message:
            pytest.skip("needs overlayfs in the kernel")
        raise
    assert (tmp_path / "upper/new").read_text() == "up\n"


def test_the_root_is_read_only_when_asked_and_its_mounts_are_not(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "touch /x; touch /dev/shm/x && echo ok")
    spec["root"]["readonly"] = True
    _, out, err = guest.run(spec)
    assert out == "ok\n"
    assert "Read-only file system" in err


def test_masked_paths_are_empty_and_cannot_be_written(guest: Guest, rootfs: Path) -> None:
    (rootfs / "secret").mkdir()
    (rootfs / "secret/key").write_text("key")
    (rootfs / "secret.txt").write_text("key")
    spec = make_spec(rootfs, "sh", "-c", "ls -A /secret; cat /secret.txt; touch /secret/x; echo $?")
    spec["linux"]["maskedPaths"] += ["/secret", "/secret.txt"]
    _, out, err = guest.run(spec)
    assert out == "1\n"
    assert "Read-only" in err
    assert (rootfs / "secret/key").read_text() == "key"


def test_read_only_paths_can_be_read_and_not_written(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "cat /proc/sys/kernel/hostname; echo x >/proc/sys/kernel/hostname")
    code, out, err = guest.run(spec)
    assert (code, out) == (1, "inside\n")
    assert "Read-only" in err


def test_the_default_devices_and_links_are_there_and_work(guest: Guest, rootfs: Path) -> None:
    script = (
        "cd /dev; stat -c '%n %F %a %t:%T' null zero full random urandom tty; "
        "for link in fd stdin stdout stderr core ptmx; do readlink $link; done"
    )
    _, out, _ = guest.run(make_spec(rootfs, "sh", "-c", script))
    assert out.splitlines() == [
        "null character special file 666 1:3",
        "zero character special file 666 1:5",
        "full character special file 666 1:7",
        "random character special file 666 1:8",
        "urandom character special file 666 1:9",
        "tty character special file 666 5:0",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "/proc/kcore",
        "pts/ptmx",
    ]


def test_what_the_image_has_where_a_device_is_to_be_stays_as_by_runc(guest: Guest, rootfs: Path) -> None:
    (rootfs / "file").write_text("the image's\n")
    spec = make_spec(rootfs, "sh", "-c", "stat -c %F /etc; cat /file")
    spec["linux"]["devices"] = [
        {"path": path, "type": "c", "major": 1, "minor": 3} for path in ("/etc", "/file")
    ]
    assert guest.run(spec)[1].splitlines() == ["directory", "the image's"]


def test_devices_of_the_spec_have_their_mode_and_owner(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "stat", "-c", "%F %a %u:%g %t:%T", "/dev/fuse", "/dev/deep/block", "/pipe")
    spec["linux"]["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "uid": 7, "gid": 8},
        {"path": "/dev/deep/block", "type": "b", "major": 7, "minor": 1, "fileMode": 0o600},
        {"path": "/pipe", "type": "p"},
    ]
    assert guest.run(spec)[1].splitlines() == [
        "character special file 620 7:8 a:e5",
        "block special file 600 0:0 7:1",
        "fifo 666 0:0 0:0",
    ]
    assert stat.S_ISFIFO((rootfs / "pipe").stat().st_mode)


@pytest.mark.parametrize(
    ("options", "shown"),
    [([], "rw"), (["rw"], "rw"), (["ro"], "ro"), (["ro", "rw"], "rw"), (["rw", "ro"], "ro")],
)
def test_cgroup_is_mounted_read_only_where_the_spec_says_so(
    guest: Guest, rootfs: Path, options: list[str], shown: str
) -> None:
    """As with runc, whose callers take "ro" out of the options to have it writable."""
    spec = make_spec(rootfs)
    spec["mounts"][-1]["options"] = ["nosuid", *options]
    assert ("ro" in flags_at(guest, spec, "/sys/fs/cgroup")) == (shown == "ro")


def test_a_container_sees_its_own_cgroup_as_the_root(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(
        rootfs, "sh", "-c", "cat /proc/self/cgroup | grep ^0; wc -l </sys/fs/cgroup/cgroup.procs"
    )
    out = guest.run(spec)[1].split()
    assert out[0] == "0::/"
    assert int(out[1]) >= 1


def test_nothing_of_the_guest_is_reachable_after_the_pivot(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "ls / /.. /proc/1/root/../..; cat /proc/self/mountinfo")
    _, out, _ = guest.run(spec)
    listing, _, mounts = out.partition("\n1")
    assert "work" not in listing.split()
    assert all(" / / " not in line or "rootfs" in line for line in mounts.splitlines())
