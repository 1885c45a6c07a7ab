"""The pool of an ordinary user: the keeper is in Podman's user namespace, as the containers are."""

from __future__ import annotations

import json
import os

import pytest

from vm.conftest import _image
from vm.rootless import RootlessPodman, descendants, missing, name_of, ordinary_user, uids_of, until
from vm.verbs import await_end, await_true
from vm.warm import MAKE_S

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "all there")


@pytest.fixture(scope="module")
def user(guest_image):
    with ordinary_user(guest_image.directory, "pool.size = 1\n", tun=True) as user:
        yield user


@pytest.fixture(scope="module")
def podman(user):
    podman = RootlessPodman(user)
    podman.image, file = _image(user.directory)
    file.chmod(0o644)
    podman("load", "--input", file)
    yield podman
    podman.any("rm", "--all", "--force", "--time", "0", timeout_s=120)


def bz(user, *words):
    """`bz pool WORDS` as the user, outside of Podman's user namespace; what it prints."""
    done = user.run(user.programs / "bz", "pool", *words)
    assert done.status == 0, done
    return done.text


def await_waiting(user):
    def waiting():
        rows = [line.split() for line in bz(user, "ls").splitlines()[1:]]
        return [int(row[0]) for row in rows if row[1] == "waiting"]

    return await_true(waiting, "a VM that waits", MAKE_S)[0]  # the template is first


def begun(podman, user, name, *flags):
    """Run a container; how its VM began, and the directory of its state."""
    podman("run", "--detach", "--name", name, "--network", "none", *flags, podman.image, "sleep", "1000")
    place = user.state / json.loads(podman("container", "inspect", name).out)[0]["Id"]
    return json.loads((place / "state.json").read_text())["annotations"]["bufferzone.start"], place


def test_a_users_container_takes_a_vm_that_waits_and_nothing_is_left(podman, user):
    folder = user.home / "data"
    folder.mkdir()
    os.chown(folder, user.uid, user.gid)
    assert begun(podman, user, "first")[0] in ("cold", "warm")
    for attempt in range(3):  # on a busy machine a start may be too impatient
        waiting = await_waiting(user)
        how, place = begun(podman, user, f"taken{attempt}", "--volume", f"{folder}:/data")
        if how == "pool":
            break
    assert how == "pool", (user.state / "@pool" / "keeper.log").read_text()
    assert int((place / "owner").read_text().split()[0]) > 0
    script = "id -u; echo kept >/data/file"
    assert podman("exec", f"taken{attempt}", "sh", "-c", script).text == "0"
    assert (folder / "file").read_text() == "kept\n"
    for pid in (waiting, *descendants(waiting)):
        assert uids_of(pid) <= user.own_ids(), (pid, name_of(pid))
    podman("rm", "--all", "--force", "--time", "0", timeout_s=120)
    assert not place.exists()
    await_waiting(user)
    bz(user, "stop")
    assert set(os.listdir(user.state / "@pool")) <= {"keeper.log", "lock"}
    ours = ("bufferzone", "qemu", "virtiofsd")
    until(lambda: not any(name_of(pid).startswith(ours) for pid in user.processes()), "the keeper's end")


def test_a_new_user_namespace_ends_the_pool_of_the_old_one_and_gets_its_own(podman, user):
    begun(podman, user, "old")
    old = await_waiting(user)
    podman("rm", "--all", "--force", "--time", "0", timeout_s=120)
    podman("system", "migrate")  # ends the process that holds the user namespace
    begun(podman, user, "new")
    await_end(old, 120)
    begun(podman, user, "newer")
    assert await_waiting(user) != old
    podman("rm", "--all", "--force", "--time", "0", timeout_s=120)
    bz(user, "stop")
