"""Sandboxes of images from Python."""

from __future__ import annotations

import pytest

import bufferzone
from bufferzone.images import store
from fakes import oci_layout, registry
from flow.cli import needs_host
from flow.test_library import World

pytestmark = [needs_host, pytest.mark.skipif(not registry.HERE, reason="needs docker-registry and skopeo")]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ours", lambda: store.Store(str(tmp_path / "storage")))
    world = World(tmp_path)
    (tmp_path / "sandboxes").mkdir()
    yield world
    assert world.left() == []
    world.close()


def test_a_sandbox_of_an_image_waits_and_runs_as_the_image_asks(world, tmp_path):
    asks = {"Entrypoint": ["false"], "Env": ["A=image", "B=image"], "User": "app", "WorkingDir": "/srv"}
    image, lines = oci_layout.usual(tmp_path / "layout", **asks), []
    with world.sandbox(image, env={"B": "mine"}, progress=lines.append) as box:
        done = box.run(["sh", "-c", "echo $A $B $(id -u) $(pwd) $(cat /etc/layer)"])
        assert done.stdout == "image mine 1000 /srv top\n"
        with pytest.raises(bufferzone.FileError, match="permission"):
            box.files.write("/etc/layer", "other")
    assert lines[0].startswith("pulling oci:")


def test_many_sandboxes_of_one_image_see_nothing_of_each_other(world, tmp_path):
    image = oci_layout.usual(tmp_path / "layout")
    with world.sandbox(image) as one, world.sandbox(image) as two:
        one.files.write("/etc/layer", "one")
        assert two.files.read_text("/etc/layer") == "top\n"
        assert one.run(["cat", "/etc/layer"]).stdout == "one"


def test_a_command_is_given_to_the_entry_point(world, tmp_path):
    image = oci_layout.usual(tmp_path / "layout", Entrypoint=["echo", "from"])
    with world.sandbox(image, command=["here"], detached=True) as box:
        assert box.wait() == 0
        assert box.logs() == "from here\n"
        box.remove()


def test_an_image_that_cannot_be_had_is_an_exception_with_an_id_and_leaves_nothing(world, tmp_path):
    here = registry.Registry(tmp_path / "registry", private=True)
    try:
        for image, code in (
            (f"{here.address}/x", "image-auth"),
            ("127.0.0.1:1/x", "no-registry"),
            (tmp_path / "nothing", "image-unknown"),
            ("./nothing", "image-unknown"),
            ("oci:/nothing", "usage"),
        ):
            with pytest.raises(bufferzone.CallerError) as caught:
                world.sandbox(image)
            assert caught.value.code == code
        with pytest.raises(bufferzone.NotFoundError, match="no such image here"):
            world.sandbox("some/image", pull="never")
    finally:
        here.close()
    assert world.left() == []
