"""The lean guest, where it has been compiled: cold, warm, and from a disk; what its kernel has not.

All other tests run in it with settings that say so:

    python3 tests/vm/private.py --settings FILE -- pytest tests/vm      # FILE: guest = "lean"
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.guestimage import build, store
from bufferzone.model import ImageRef
from vm.leftovers import Watch
from vm.verbs import bundle
from vm.warm import Warm

pytestmark = pytest.mark.vm

MOUNTS = [
    {"destination": f"/{name}", "type": kind, "source": kind}
    for name, kind in (("proc", "proc"), ("sys", "sysfs"))
]
SHOWN = "cat /proc/sys/kernel/osrelease; ls /sys/class/net; ls /proc/modules 2>&1; echo end; exec sleep 1000"


@pytest.fixture(scope="session")
def lean_image() -> ImageRef:
    directory = store.default_store()
    if not build.is_ready(directory, "lean"):
        pytest.skip("no lean guest has been compiled here: bz setup --guest lean")
    return build.ensure_image(directory, guest="lean", progress=print)


@pytest.fixture
def warm(tmp_path: Path, lean_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path / "warm", lean_image)
    watch = Watch(warm.runtime.root)
    yield warm
    warm.runtime.close()
    watch.assert_nothing_left()


def test_a_container_starts_cold_then_warm_on_a_kernel_without_modules(warm: Warm, tmp_path: Path) -> None:
    for id, begun in (("cold", "cold"), ("warm", "warm")):
        container = warm.runtime.run(id, bundle(tmp_path / id, SHOWN, mounts=MOUNTS))
        container.expect("end")
        release, *rest = container.seen[container.out].decode().splitlines()
        assert release.endswith("-bufferzone")
        # no network card is seen until it is wired, though the driver is there from the start
        assert rest == ["lo", "ls: /proc/modules: No such file or directory", "end"]
        assert warm.begun(id) == begun
        assert warm.runtime.ok("exec", id, "/bin/echo", "well").out == "well\n"
        if begun == "cold":
            warm.await_template()
        warm.runtime.ok("delete", "--force", id)


def test_stock_and_lean_have_templates_of_their_own(
    warm: Warm, guest_image: ImageRef, lean_image: ImageRef
) -> None:
    warm.make_template()
    assert len(warm.keys()) == 1
    if guest_image.digest == lean_image.digest:
        pytest.skip("the settings choose the lean guest for every test")
    rows = Path(warm.before[warm.before.index("--settings") + 1])
    rows.write_text(rows.read_text().replace(lean_image.directory, guest_image.directory))
    warm.make_template()
    assert len(set(warm.keys())) == 2
