"""A Python image of Debian's packages, from a registry, in real VMs: with bz, from Python, joined by exec."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from fakes import oci_layout, registry
from vm.warm import Warm

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not registry.HERE, reason="needs docker-registry and skopeo"),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    here = registry.Registry(tmp_path_factory.mktemp("registry"))
    system = _system_python()
    made = oci_layout.of_packages(
        tmp_path_factory.mktemp("layout"), [f"{system}-minimal", "dash", "coreutils"], **_asks(system)
    )
    yield here.push(made, "python")
    here.close()


def _system_python() -> str:
    """python3.11, python3.13: the release's own."""
    return os.path.basename(os.path.realpath("/usr/bin/python3"))


def _asks(system: str) -> dict:
    return {"Entrypoint": [f"/usr/bin/{system}"], "Cmd": ["-c", "print('usual')"], "Env": ["FROM=image"]}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path_factory.mktemp("images"), guest_image, templates=False)
    yield warm
    warm.runtime.close()


def test_an_image_of_a_registry_answers_on_a_kernel_of_its_own(warm: Warm, image: str):
    script = (
        "import os, zlib; print(6 * 7, os.environ['FROM'], open('/proc/sys/kernel/random/boot_id').read())"
    )
    done = warm.bz("run", "--network", "none", image, "-c", script)
    assert done.status == 0, done.err
    answer, said, boot_id = done.out.split()
    assert (answer, said) == ("42", "image")
    assert boot_id != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert warm.bz("run", "--network", "none", image).out == "usual\n"
    assert os.listdir(warm.store.parent / "sandboxes") == []


def test_a_container_of_an_image_is_asked_and_stopped(warm: Warm, image: str):
    started = warm.bz(
        "run", "-d", "--network", "none", "--name", "box", "--entrypoint", "sleep", image, "1000"
    )
    assert started.status == 0, started.err
    assert warm.bz("exec", "box", "sh", "-c", "echo $FROM; cat /etc/hostname").out == "image\nbox\n"
    (found,) = json.loads(warm.bz("inspect", "box").out)
    assert found["annotations"]["org.opencontainers.image.ref.name"] == f"{image}:latest"
    assert "the image is in use by a container" in warm.bz("image", "rm", image).err
    assert warm.bz("rm", "-f", "box").status == 0
