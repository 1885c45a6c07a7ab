"""Locks of files on a volume of rootless Podman: between two containers and the user's own programs."""

from __future__ import annotations

import os
import subprocess

import pytest

from vm.conftest import _image
from vm.podman import read_until
from vm.rootless import RootlessPodman, missing
from vm.test_podman_volumes import PYTHON
from vm.test_volume_locks import ADD_TOGETHER, BEGIN, COUNT, HOLD, TRY, database, together, value_of

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "all there")

ON_HOST = ["/usr/bin/python3", "-ISc"]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


@pytest.fixture(scope="module")
def volume(user):
    folder = user.home / "locked"
    folder.mkdir(mode=0o755)
    os.chown(folder, user.uid, user.gid)
    return folder


@pytest.fixture(scope="module")
def boxes(user, volume):
    """Rootless Podman, and the names of two of its containers, in two VMs, with the volume at /l."""
    podman = RootlessPodman(user)
    podman.image, file = _image(user.directory)
    file.chmod(0o644)
    podman("load", "--input", file)
    names = ("one", "two")
    words = ["--volume", f"{volume}:/l", "--volume", "/usr:/host:ro", "--env", "PYTHONHOME=/host"]
    for name in names:
        podman(
            "run", "--detach", "--network", "none", "--name", name, *words, podman.image, "sleep", "1000000"
        )
    yield podman, *names
    podman.any("rm", "--all", "--force", "--time", "0", timeout_s=120)


@pytest.fixture
def file(user, volume):
    path = volume / "f"
    path.write_text("text")
    os.chown(path, user.uid, user.gid)
    return path


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_what_one_container_has_locked_neither_the_user_nor_another_gets(boxes, user, file, how):
    podman, one, two = boxes
    with podman.start("exec", "--interactive", one, *PYTHON, HOLD, "/l/f", how, **PIPES) as holder:
        read_until(holder.stdout, b"held")
        assert user.run(*ON_HOST, TRY, file, how).text == "EAGAIN"
        assert podman("exec", two, *PYTHON, TRY, "/l/f", how).text == "EAGAIN"
        with user.start(*ON_HOST, HOLD, file, how, **PIPES) as waiting:
            holder.stdin.close()
            assert holder.wait(60) == 0
            read_until(waiting.stdout, b"held")
            assert podman("exec", one, *PYTHON, TRY, "/l/f", how).text == "EAGAIN"
            waiting.stdin.close()
    assert podman("exec", two, *PYTHON, TRY, "/l/f", how).text == "got it"


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_a_container_gets_what_the_user_has_locked_when_it_is_free(boxes, user, file, how):
    podman, one, two = boxes
    with user.start(*ON_HOST, HOLD, file, how, **PIPES) as holder:
        read_until(holder.stdout, b"held")
        assert podman("exec", one, *PYTHON, TRY, "/l/f", how).text == "EAGAIN"
        with podman.start("exec", "--interactive", two, *PYTHON, HOLD, "/l/f", how, **PIPES) as waiting:
            assert podman("exec", two, "cat", "/l/f").text == "text"  # nobody else waits
            assert waiting.poll() is None
            holder.stdin.close()
            read_until(waiting.stdout, b"held")
            waiting.stdin.close()
            assert waiting.wait(60) == 0


def test_a_file_of_a_subordinate_id_that_nobody_else_may_read_is_locked_between_containers(
    boxes, user, volume
):
    podman, one, two = boxes
    script = "echo text >/l/own; chown 1234:1234 /l/own; chmod 600 /l/own"
    podman("exec", one, "sh", "-c", script)
    try:
        as_owner = ("exec", "--interactive", "--user", "1234", one, *PYTHON, HOLD, "/l/own", "lockf")
        with podman.start(*as_owner, **PIPES) as holder:
            read_until(holder.stdout, b"held")
            assert (volume / "own").stat().st_uid in user.own_ids() - {user.uid}
            assert podman("exec", "--user", "1234", two, *PYTHON, TRY, "/l/own", "lockf").text == "EAGAIN"
            holder.stdin.close()
            assert holder.wait(60) == 0
    finally:
        podman("exec", one, "rm", "/l/own")


def counted(boxes, user, program, path, of_box, of_user, *words):
    """Run `program` in two containers and as a program of the user's own."""
    podman, *names = boxes
    inside = [("exec", "--interactive", name, *PYTHON, program, f"/l/{path.name}", of_box) for name in names]
    runs = [podman.start(*argv, *words, **PIPES) for argv in inside]
    return [*runs, user.start(*ON_HOST, program, path, of_user, *words, **PIPES)]


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_increments_of_two_containers_and_the_user_are_all_there(boxes, user, volume, how):
    counter = volume / f"counter-{how}"
    counter.write_text("0")
    os.chown(counter, user.uid, user.gid)
    said = together(counted(boxes, user, BEGIN + COUNT, counter, 25, 950, how))
    assert [done for done, _ in said] == ["done"] * 3
    assert int(counter.read_text()) == 1000
    assert all(int(met) for _, met in said)


def test_a_database_of_two_containers_and_the_user_loses_nothing(boxes, user, volume):
    base = database(volume / "rollback.db", "delete")
    os.chown(base, user.uid, user.gid)
    said = together(counted(boxes, user, BEGIN + ADD_TOGETHER, base, 20, 960))
    assert [done for done, _ in said] == ["done"] * 3
    assert sum(int(met) for _, met in said) > 0
    assert value_of(base) == 1000
