"""What an image asks for becomes a part of a wish, where nobody said otherwise."""

from __future__ import annotations

from bufferzone.images import config, fetch
from bufferzone.workload import from_image
from bufferzone.workload.wish import Wish


def wish(args=(), *, own_entrypoint=False, asks=None, **more):
    asked = config.read({"config": asks or {}})
    found = Wish(args, image=fetch.Image(reference="x", layers=("/l",), config=asked), **more)
    from_image.fill(found, own_entrypoint=own_entrypoint)
    return found


BOTH = {"Entrypoint": ["entry"], "Cmd": ["usual"]}


def test_the_command_follows_the_entry_point_and_replaces_the_images():
    assert wish(asks=BOTH).args == ["entry", "usual"]
    assert wish(["mine"], asks=BOTH).args == ["entry", "mine"]
    assert wish(["own", "mine"], own_entrypoint=True, asks=BOTH).args == ["own", "mine"]
    assert wish(["own"], own_entrypoint=True, asks=BOTH).args == ["own"]


def test_environment_user_and_directory_are_the_images_unless_said():
    asks = {"Env": ["A=1", "B=1"], "User": "u", "WorkingDir": "/w", "StopSignal": "SIGINT"}
    found = wish(asks=asks, env=["B=2"])
    assert (found.env, found.user, found.cwd) == (["A=1", "B=2"], "u", "/w")
    assert found.annotations[from_image.STOP_SIGNAL] == "SIGINT"
    assert (wish(asks=asks, user="0").user, wish(asks=asks, cwd="/x").cwd) == ("0", "/x")
    assert wish(asks={"WorkingDir": "relative"}).cwd == ""


def test_a_volume_can_be_written_where_the_root_cannot():
    asks = {"Volumes": {"/data": {}, "/own/": {}, "relative": {}, "/": {}}}
    own = {"destination": "/own", "type": "bind", "source": "/s"}
    assert wish(asks=asks).mounts == []
    found = wish(asks=asks, read_only=True, mounts=[own])
    assert [entry["destination"] for entry in found.mounts] == ["/own", "/data"]
