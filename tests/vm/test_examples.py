"""The examples, run as they stand, with a store and a state of the tests' own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from bufferzone.model import ImageRef
from fakes import oci_layout, registry
from vm.podman import ROOT
from vm.test_library import HEAD
from vm.warm import Warm

pytestmark = pytest.mark.vm

EXAMPLES = ROOT / "examples"
RUN = """
import runpy
sys.argv = {words!r}
runpy.run_path({words!r}[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path_factory.mktemp("examples"), guest_image)
    warm.make_template()
    yield warm
    for id in os.listdir(warm.runtime.root):
        warm.bz("rm", "-f", id)
    warm.runtime.close()


@pytest.fixture(scope="module")
def numpy_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python image with numpy, of Debian's packages."""
    packages = ["python3-numpy", "python3-minimal", "dash", "coreutils"]
    installed = subprocess.run(["dpkg", "-s", *packages], capture_output=True, check=False)
    if installed.returncode or not registry.HERE:
        pytest.skip("needs python3-numpy and skopeo")
    libraries = "/usr/lib/x86_64-linux-gnu"  # its alternatives are links that no package has
    env = [f"LD_LIBRARY_PATH={libraries}/blas:{libraries}/lapack"]
    return oci_layout.of_packages(tmp_path_factory.mktemp("layout"), packages, Env=env)


def example(warm: Warm, name: str, *words: str) -> str:
    """What an example prints; nothing may be left of its sandboxes."""
    head = HEAD.format(source=str(ROOT / "src"), root=str(warm.runtime.root))
    program = head + RUN.format(words=[str(EXAMPLES / name), *words])
    done = subprocess.run(
        [*warm.before, "/usr/bin/python3", "-IS", "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(warm.store.parent / "sandboxes") == []
    return done.stdout


def test_a_prepared_interpreter_answers_sooner_than_a_warm_start(warm: Warm, numpy_image: str):
    said = example(warm, "prepared_interpreter.py", numpy_image)
    print(said)
    warm_start, *restored, drawn = said.splitlines()
    assert ": 45 after " in warm_start
    ratios = [float(re.search(r": 45 after .*, (\d\.\d+) of it$", line)[1]) for line in restored]
    assert len(ratios) == 2
    assert min(ratios) < 0.5
    assert drawn == "random numbers: 2 different"
