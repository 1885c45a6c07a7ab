"""bz and a registry: pulling, passwords, damage, a registry that dies, a full disk, a pull that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from fakes import oci_layout, registry
from flow.cli import BZ, SETTINGS, Cli, needs_host

pytestmark = [needs_host, pytest.mark.skipif(not registry.HERE, reason="needs docker-registry and skopeo")]

MIB = 1 << 20


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    found = registry.Registry(tmp_path_factory.mktemp("registry"))
    yield found
    found.close()


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{tmp_path}/images"')
    yield cli
    cli.close()


def run(bz, *words, **more):
    return bz.bz("run", "-q", "--network", "none", *words, **more)


def large(place, size=8 * MIB):
    """An image with a layer that does not pack."""
    files = {"bin": None, "etc": None, "data": os.urandom(size)}
    return oci_layout.write(place, [oci_layout.layer(files, busybox=True)], {"Cmd": ["echo", "whole"]})


def refused(done, says):
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def is_empty(bz):
    """Whether no part of an image, and no blob on its way, is left."""
    pulls = bz.base / "storage/pulls"
    return bz.bz("images", "-q").stdout == "" and (not pulls.exists() or os.listdir(pulls) == [])


def test_an_image_of_a_registry_runs_and_a_tag_that_is_gone_is_told(bz, here, tmp_path):
    name = here.push(oci_layout.usual(tmp_path / "layout", Cmd=["cat", "/etc/layer"]), "some/image:one")
    assert run(bz, name).stdout == "top\n"
    refused(run(bz, "--pull", "always", name.replace(":one", ":two"), check=125), "no such image or tag")
    refused(run(bz, f"{here.address}/no/such", check=125), "no such image or tag")
    digest = bz.bz("images", "--json").stdout.partition('"digest": "')[2].partition('"')[0]
    assert run(bz, f"{name.removesuffix(':one')}@{digest}").stdout == "top\n"


def test_a_tag_that_moved_is_taken_when_it_is_asked_for(bz, here, tmp_path):
    name = here.push(oci_layout.usual(tmp_path / "1", Cmd=["echo", "old"]), "moving")
    assert run(bz, name).stdout == "old\n"
    here.push(oci_layout.usual(tmp_path / "2", Cmd=["echo", "new"]), "moving")
    assert run(bz, name).stdout == "old\n"
    assert run(bz, "--pull", "always", name).stdout == "new\n"


def test_a_private_registry_wants_the_login_that_the_usual_file_has(bz, tmp_path):
    here = registry.Registry(tmp_path / "registry", private=True)
    try:
        name = here.push(oci_layout.usual(tmp_path / "layout", Cmd=["echo", "in"]), "private")
        refused(run(bz, name, check=125), "the registry wants a login")
        wrong = tmp_path / "wrong.json"
        wrong.write_text(json.dumps({"auths": {here.address: {"auth": "YW5uOndyb25n"}}}))
        refused(
            run(bz, name, check=125, env={"REGISTRY_AUTH_FILE": str(wrong)}), "the registry wants a login"
        )
        assert run(bz, name, env={"REGISTRY_AUTH_FILE": str(here.auth_file)}).stdout == "in\n"
    finally:
        here.close()


def test_a_blob_that_the_registry_has_damaged_is_refused_and_nothing_is_left(bz, tmp_path):
    here = registry.Registry(tmp_path / "registry")
    try:
        name = here.push(large(tmp_path / "layout", MIB), "damaged")
        blob = here.largest_blob()
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        done = run(bz, name, check=125)
        assert "what came is not what its digest says" in done.stderr
        assert is_empty(bz)
    finally:
        here.close()


def test_a_registry_that_dies_in_the_middle_leaves_nothing_and_the_next_pull_is_whole(bz, here, tmp_path):
    name = here.push(large(tmp_path / "layout"), "large")
    dying = registry.Dying(here, 4 * MIB)
    refused(run(bz, f"{dying.address}/large", check=125), "cannot pull")
    assert is_empty(bz)
    assert run(bz, name).stdout == "whole\n"


def test_a_pull_that_is_killed_leaves_nothing_that_the_next_does_not_remove(bz, here, tmp_path):
    name = here.push(large(tmp_path / "layout"), "large")
    dying = registry.Dying(here, 1 << 40)
    pulling = subprocess.Popen(
        bz.command("pull", f"{dying.address}/large", program=BZ),
        env={},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert pulling.stderr.readline().startswith(b"bz: pulling")
    os.killpg(pulling.pid, signal.SIGKILL)
    pulling.communicate()
    dying.close()
    assert bz.bz("images", "-q").stdout == ""
    assert run(bz, name).stdout == "whole\n"
    assert os.listdir(bz.base / "storage/pulls") == []


def test_a_full_disk_is_told_and_can_be_used_again(tmp_path, here):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    bz = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{place}/images"')
    try:
        small = here.push(oci_layout.usual(tmp_path / "usual", Cmd=["echo", "fits"]), "small")
        large_one = here.push(large(tmp_path / "layout", 32 * MIB), "too-large")
        refused(run(bz, large_one, check=125), "the disk is full")
        assert bz.bz("images", "-q").stdout == ""
        assert run(bz, small).stdout == "fits\n"
    finally:
        bz.close()
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_pull_beside_another_of_the_same_image_takes_one(bz, here, tmp_path):
    name = here.push(large(tmp_path / "layout"), "twice")
    pulls = [bz.start_bz("pull", "-q", name) for _ in range(3)]
    ids = {pull.communicate(timeout=120) for pull in pulls}
    assert {pull.returncode for pull in pulls} == {0}, ids
    assert len(ids) == 1
    assert len(bz.bz("images", "-q").stdout.split()) == 1
