"""What differs for root of a user namespace: which ids there are, how helpers are confined, where state lies.

Each test that needs one forks a child into a new user namespace with the given map.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from bufferzone import config, jail, state
from bufferzone.errors import HostError
from bufferzone.guestimage import current, store
from bufferzone.linux import identity, pidns, process
from unit.shell_calls import SHELL

BUSYBOX = "/usr/bin/busybox"
needs_root = pytest.mark.skipif(not identity.is_real_root(), reason="needs root: maps of many ids")
#: ids of nobody, as the maps of rootless Podman look: root is some user, the rest is subordinate
USUAL = ((0, 1_900_000_000, 1), (1, 1_900_100_000, 65536))
SINGLE = ((0, 1_900_000_000, 1),)


def in_namespace(rows: tuple[tuple[int, int, int], ...], body: Callable[[], None]) -> None:
    """Run `body` as uid 0 of a new user namespace with this map; fails with what it raised."""
    entered, out = os.pipe(), os.pipe()
    mapped, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            process.unshare(process.CLONE_NEWUSER | process.CLONE_NEWNS)
            os.write(entered[1], b"+")
            os.read(mapped, 1)
            os.setgroups(())
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            body()
            status = 0
        except BaseException:
            os.write(out[1], traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(out[1])
    os.read(entered[0], 1)
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{kind}").write_text("".join(f"{a} {b} {c}\n" for a, b, c in rows))
    os.write(go, b"+")
    with open(out[0], "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(pid, 0)
    for fd in (*entered, mapped, go):
        os.close(fd)
    assert status == 0, said


def jailed(script: str, uid: int) -> str:
    """What a shell script in a jail prints."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    confined = jail.Jail(
        name="test",
        uid=uid,
        gid=uid,
        log_fd=writer,
        calls=SHELL,
        binds=(jail.JailBind(source=BUSYBOX, target="/busybox"),),
    )
    with jail.start(["/busybox", "sh", "-c", script], confined) as child, open(reader) as file:
        os.close(writer)
        text = file.read()
        assert child.wait_exit(10) == 0, text
    return text


@needs_root
def test_root_of_a_user_namespace_is_not_taken_for_root_of_the_machine() -> None:
    def body() -> None:
        assert os.geteuid() == 0
        assert identity.is_namespace_root()
        assert not identity.is_real_root()
        assert identity.outer_uid() == 1_900_000_000

    assert identity.is_real_root()
    in_namespace(USUAL, body)


@needs_root
def test_spare_ids_are_high_ones_of_the_map_without_nobody() -> None:
    def body() -> None:
        spare = identity.spare_ids()
        assert spare[0] == 65533
        assert min(spare) >= 32000
        assert {65534, 65535, 65536}.isdisjoint(spare)

    in_namespace(USUAL, body)
    in_namespace(SINGLE, lambda: _equal(len(identity.spare_ids()), 0))


def _equal(found: object, wanted: object) -> None:
    assert found == wanted


@needs_root
def test_sandboxes_of_a_user_get_different_uids_of_its_map(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    def body() -> None:
        with jail.allocate_uid(f"{tmp_path}/run") as first, jail.allocate_uid(f"{tmp_path}/run") as second:
            ids = {first.vmm, first.helper, second.vmm, second.helper}
            assert len(ids) == 4
            assert ids <= set(identity.spare_ids())
        assert os.stat(f"{tmp_path}/run").st_mode & 0o777 == 0o700

    _reachable(tmp_path)
    in_namespace(USUAL, body)


@needs_root
def test_who_has_one_id_only_shares_it_with_its_helpers(tmp_path: Path) -> None:
    def body() -> None:
        with jail.allocate_uid(f"{tmp_path}/run") as lease:
            assert (lease.vmm, lease.helper) == (0, 0)

    in_namespace(SINGLE, body)


@needs_root
@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static")
@pytest.mark.parametrize(("rows", "uid"), [(USUAL, 65000), (SINGLE, 0)])
def test_a_helper_of_a_user_is_confined_as_one_of_root(
    rows: tuple[tuple[int, int, int], ...], uid: int
) -> None:
    def body() -> None:
        text = jailed("/busybox id -u; /busybox echo $$; /busybox ls /; /busybox touch /x || true", uid)
        assert text.split()[:4] == [str(uid), "1", "busybox", "dev"], (
            text
        )  # PID 1: a PID namespace of its own
        assert "Read-only file system" in text

    in_namespace(rows, body)


@needs_root
@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static")
def test_a_helper_of_a_user_dies_with_its_parent() -> None:
    def body() -> None:
        read_end, write_end = os.pipe()  # not close-on-exec: open as long as the helper lives
        os.set_inheritable(write_end, True)
        middle = os.fork()
        if middle == 0:
            confined = jail.Jail(
                name="sleeper",
                uid=65000,
                gid=65000,
                log_fd=write_end,
                calls=SHELL,
                binds=(jail.JailBind(source=BUSYBOX, target="/busybox"),),
            )
            jail.start(["/busybox", "sleep", "100"], confined)
            os.write(write_end, b"+")
            signal.pause()
        os.close(write_end)
        assert os.read(read_end, 1) == b"+"
        os.kill(middle, signal.SIGKILL)
        os.waitpid(middle, 0)
        signal.alarm(20)  # else we would wait for the sleeper
        assert os.read(read_end, 1) == b""

    in_namespace(USUAL, body)


@needs_root
def test_a_fork_into_a_pid_namespace_leaves_later_children_where_they_were() -> None:
    def body() -> None:
        read_end, write_end = os.pipe()
        pid = pidns.fork()
        if pid == 0:
            os.write(write_end, b"%d" % os.getpid())
            os._exit(3)
        assert os.read(read_end, 16) == b"1"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3  # it is our child
        later = os.fork()
        if later == 0:
            os._exit(4 if os.getpid() != 1 else 5)
        assert os.waitstatus_to_exitcode(os.waitpid(later, 0)[1]) == 4

    in_namespace(USUAL, body)


@needs_root
def test_state_images_and_settings_of_a_rootless_root_are_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, runtime = tmp_path / "home", tmp_path / "run"
    for path in (home, runtime):
        path.mkdir()
        path.chmod(0o777)
    _reachable(tmp_path)
    settings = home / ".config" / "bufferzone" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("vcpus = 3\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    def body() -> None:
        assert state.runtime_root() == f"{runtime}/bufferzone"
        assert state.lease_root() == f"{runtime}/bufferzone-uids"
        assert store.default_store() == config.default_image_store()
        assert store.default_store() == f"{home}/.local/share/bufferzone/images"
        assert config.load().vcpus == 3

    in_namespace(USUAL, body)
    assert state.runtime_root() == "/run/bufferzone"
    assert state.lease_root() == "/run/bufferzone-uids"


def test_a_runtime_directory_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/none")
    with pytest.raises(HostError, match="XDG_RUNTIME_DIR is not a directory: /run/user/none") as caught:
        state.runtime_root()
    assert "--root" in caught.value.hint


def test_a_user_boots_the_image_that_root_has_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "root", tmp_path / "home"
    theirs.mkdir(mode=0o755)
    monkeypatch.setattr(store, "SYSTEM_STORE", str(theirs))
    monkeypatch.setattr(store, "default_store", lambda: str(ours))
    monkeypatch.setattr(store, "open_image", lambda place, digest=None: (place, digest))
    current.remember_own(str(theirs), "d" * 64)
    assert current.current_image(str(ours), print) == (str(theirs), "d" * 64)
    current.remember_own(str(ours), "e" * 64)
    assert current.current_image(str(ours), print) == (str(ours), "e" * 64)


def test_a_store_that_others_may_write_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "root"
    theirs.mkdir()
    theirs.chmod(0o777)
    monkeypatch.setattr(store, "SYSTEM_STORE", str(theirs))
    monkeypatch.setattr(store, "default_store", lambda: str(tmp_path / "home"))
    current.remember_own(str(theirs), "d" * 64)
    with pytest.raises(HostError, match=r"no guest image in .*home"):
        current.current_image(str(tmp_path / "home"), print)


def _reachable(path: Path) -> None:
    """Let another uid reach `path`: pytest's directories are private."""
    for parent in (path, *path.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
