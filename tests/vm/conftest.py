"""What tests in real VMs share: Podman of their own with an image, and the proof that nothing is left."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from vm.leftovers import Watch
from vm.podman import ROOT, Podman, remove_tree
from vm.rootless import ordinary_user
from vm.warm import Warm

#: what the tests need in the image besides busybox: a user with a second group, and files that cannot run
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1235:app:/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1235:\nextra:x:4321:app\n"
#: a template of a new shape is made in the background after its first boot, by a process that then ends
TEMPLATE_S = 180.0


def _image(directory: Path) -> tuple[str, Path]:
    """(name, file) of busybox as scripts/busybox_image.py makes it, with our additions."""
    described = importlib.util.spec_from_file_location("busybox_image", ROOT / "scripts" / "busybox_image.py")
    assert described is not None
    assert described.loader is not None
    busybox = importlib.util.module_from_spec(described)
    described.loader.exec_module(busybox)
    busybox.FOLDERS["srv"] = 0o755
    busybox.FILES.update(
        {"etc/passwd": PASSWD, "etc/group": GROUP, "srv/plain": "text\n", "srv/old": "old\n"}
    )
    name, data = busybox.archive(busybox.layer())
    path = directory / "image.tar"
    path.write_bytes(data)
    return name, path


def load_image(podman: Podman) -> None:
    """Give Podman the tests' image: `podman.image`."""
    podman.image, file = _image(podman.directory)
    podman("load", "--input", file)


@pytest.fixture(scope="session")
def podman():
    """Podman with the image `podman.image`; everything of it is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="bufferzone-podman-"))
    directory.chmod(0o711)
    podman = Podman(directory)
    try:
        load_image(podman)
        yield podman
    finally:
        podman.close()
        remove_tree(directory)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef) -> Path:
    """A store with a template of the default shape, made once; a test takes a copy of it."""
    warm = Warm(tmp_path_factory.mktemp("template"), guest_image)
    warm.make_template()
    return warm.store


class Clean:
    """`check()` fails on what removed containers left: process, mount, cgroup, socket, state directory."""

    def __init__(self, podman: Podman) -> None:
        self._podman, self._watch = podman, Watch(podman.state)

    def check(self) -> None:
        self._watch.assert_nothing_left(TEMPLATE_S)
        assert self._podman.leftovers() == []


@pytest.fixture(scope="module")
def nothing_left(podman):
    """Removes the module's containers at its end; nothing of them may be left then."""
    clean = Clean(podman)
    clean.check()
    yield clean
    podman("rm", "--all", "--force", "--time", "0", timeout_s=120)
    clean.check()


@pytest.fixture(scope="module")
def user(guest_image):
    with ordinary_user(guest_image.directory) as user:
        yield user
