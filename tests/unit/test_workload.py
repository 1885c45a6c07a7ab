"""From a wish to config.json: users, capabilities, sizes; and the guest image that is missing."""

from __future__ import annotations

import errno
import os

import pytest

from bufferzone import oci, state
from bufferzone.cli.bz import wish_flags
from bufferzone.errors import HostError, UsageError
from bufferzone.workload import config_json, host_root, launch, place, users
from bufferzone.workload.wish import Wish

ROOT = users.User(0, 0, [], "/root")
SOMEBODY = users.User(1000, 1000, [], "/home/me")


def made(user=ROOT, **wish):
    value = config_json.config_json(Wish(["true"], **wish), user=user, mounts=[], init="/usr/bin/catatonit")
    oci.validate(value)
    return value


@pytest.fixture
def rootfs(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nbroken\napp:x:1234:99::/home/app:/bin/sh\n"
    )
    (tmp_path / "etc/group").write_text("root:x:0:\nwheel:x:10:app,root\nbad:x:many:app\napp:x:99:\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0, 0, [10], "/root")),
        ("app", (1234, 99, [10], "/home/app")),
        ("1234", (1234, 99, [10], "/home/app")),
        ("app:wheel", (1234, 10, [], "/home/app")),
        ("77", (77, 0, [], "/")),
        ("77:88", (77, 88, [], "/")),
    ],
)
def test_a_user_is_looked_up_in_the_root_file_system(rootfs, text, found):
    user = users.find(str(rootfs), text)
    assert (user.uid, user.gid, user.groups, user.home) == found


@pytest.mark.parametrize("text", ["ghost", "app:ghosts", "-1", "4294967296"])
def test_a_user_that_is_not_there_is_refused(rootfs, text):
    with pytest.raises(UsageError):
        users.find(str(rootfs), text)


def test_a_passwd_that_leads_out_of_the_root_is_not_read(rootfs, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "passwd"
    outside.write_text("spy:x:1:1::/:/bin/sh\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to(outside)
    with pytest.raises(UsageError):
        users.find(str(rootfs), "spy")


def test_root_has_dockers_capabilities_and_others_may_gain_them():
    usual = made()["process"]["capabilities"]
    assert len(usual["effective"]) == 14
    assert "CAP_SYS_ADMIN" not in usual["bounding"]
    other = made(SOMEBODY)["process"]["capabilities"]
    assert (other["effective"], len(other["bounding"])) == ([], 14)
    asked = made(SOMEBODY, cap_add=["net_admin"])["process"]["capabilities"]
    assert asked["ambient"] == asked["effective"] == ["CAP_NET_ADMIN"]


def test_capabilities_are_added_and_dropped_as_docker_does():
    none = made(cap_drop=["ALL"], cap_add=["CAP_CHOWN"])["process"]["capabilities"]["bounding"]
    assert none == ["CAP_CHOWN"]
    most = made(cap_add=["all"], cap_drop=["sys_admin"])["process"]["capabilities"]["bounding"]
    assert len(most) == len(config_json.ALL_CAPABILITIES) - 1


def test_what_was_said_wins_over_what_is_usual_in_the_environment():
    env = made(env=["PATH=/x", "A=b=c"], hostname="h")["process"]["env"]
    assert env == ["HOSTNAME=h", "HOME=/root", "LANG=C.UTF-8", "PATH=/x", "A=b=c"]


def test_a_network_behind_passt_is_chosen_beside_the_bundle():
    wish = Wish(["true"], publish=["8080:80"])
    assert config_json.chosen(wish) == {"host_network": "passt", "publish": ["8080:80"]}
    kinds = [entry["type"] for entry in made()["linux"]["namespaces"]]
    assert "network" not in kinds
    assert config_json.chosen(Wish(["true"], network="none")) == {}


@pytest.mark.parametrize(
    ("text", "number"),
    [("512m", 512 << 20), ("2g", 2 << 30), ("1.5GiB", 3 << 29), ("100", 100), ("4kb", 4096)],
)
def test_a_size_is_what_docker_takes(text, number):
    assert wish_flags.size("--memory", text) == number


@pytest.mark.parametrize("text", ["", "m", "-1", "0", "1x", "inf", "nan", "1e400"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        wish_flags.size("--memory", text)


def test_name_servers_that_a_guest_cannot_reach_are_left_out(tmp_path, monkeypatch):
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("# comment\nnameserver 127.0.0.53\nsearch lan\n")
    real.write_text("nameserver ::1\nnameserver 192.0.2.1\nsearch lan\n")
    monkeypatch.setattr(host_root, "_RESOLVERS", (str(stub), str(real)))
    assert host_root.resolvers() == "nameserver 192.0.2.1\nsearch lan\n"


def test_a_missing_guest_image_is_built_and_it_goes_on(monkeypatch):
    from bufferzone.guestimage import build, current

    built = []

    class Image:
        digest = "d"

    def ensure(store, progress):
        progress("a step")
        built.append(store)
        return Image

    monkeypatch.setattr(build, "ensure_image", ensure)
    monkeypatch.setattr(current, "remember_own", lambda store, digest: None)
    steps = []

    def work():
        if not built:
            raise HostError("no guest image", code="image-missing")
        return 5

    assert launch._with_image(work, steps.append) == 5
    assert steps == ["a step"]


def test_another_failure_builds_nothing():
    def work():
        raise HostError("no disk", code="disk")

    with pytest.raises(HostError, match="no disk"):
        launch._with_image(work, print)


def test_a_disk_without_locks_is_told_of_and_not_tried_for_ever(tmp_path, monkeypatch):
    def refuse(fd, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(place.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks"):
        place._make(str(tmp_path), "a")


def test_a_place_that_is_being_tidied_away_cannot_be_taken_by_its_maker(tmp_path, monkeypatch):
    made = tmp_path / "a-1"
    made.mkdir()  # its maker has come so far
    remove, locks = place._remove_tree, []

    def removed_slowly(path):
        locks.append(place._try_lock(path))
        remove(path)
        locks.append(place._try_lock(path))

    monkeypatch.setattr(place, "_remove_tree", removed_slowly)
    place.tidy(str(tmp_path))
    assert locks == [-1, -1]
    assert not made.exists()


def test_a_place_that_its_maker_has_locked_is_not_tidied_away(tmp_path):
    path, lock = place._make(str(tmp_path), "a")
    place.tidy(str(tmp_path))
    assert os.path.isdir(path)
    os.close(lock)
    place.tidy(str(tmp_path))
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("owner", "transient", "stays"),
    [("", True, False), ("4194304 1\n", True, False), ("mine", True, True), ("4194304 1\n", False, True)],
)
def test_a_container_that_its_program_was_killed_in_making_goes_with_its_place(
    tmp_path, monkeypatch, owner, transient, stays
):
    monkeypatch.setattr(place, "parent", lambda: str(tmp_path / "places"))
    root = tmp_path / "root"
    directory = state.create(str(root), "half")
    if owner != "mine":
        os.unlink(os.path.join(directory, state.OWNER))
    if owner not in ("", "mine"):
        (root / "half" / state.OWNER).write_text(owner)
    place.Place(str(root), "half", transient=transient).close()
    place.tidy(str(tmp_path / "places"))
    assert os.listdir(tmp_path / "places") == []
    assert os.path.isdir(directory) == stays
