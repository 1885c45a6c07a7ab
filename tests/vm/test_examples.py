"""The examples, run as they stand, with a store and a state of the tests' own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from fakes import oci_layout, registry
from flow.cli import make_rootfs
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


def test_untrusted_code_ends_within_its_limits_and_the_caller_is_told_how(warm: Warm):
    ends = dict(line.split(": ", 1) for line in example(warm, "run_untrusted_code.py").splitlines())
    assert ends["answers"] == "ok, exit code 0, 42"
    assert ends["fails"] == "nonzero, exit code 1, wrong"
    assert ends["waits for ever"] == "timeout, exit code 137, "
    assert ends["never ends"] == "cpu-limit, exit code 137, "
    assert ends["wants all memory"] == "memory-limit, exit code 137, "
    assert ends["writes without end"].startswith("output-limit, exit code 137, spam")
    assert "FileNotFoundError" in ends["reads this host"]
    assert "Network is unreachable" in ends["calls home"]
    assert len(ends) == 8


def test_a_judge_tells_right_from_wrong(warm: Warm):
    assert [line.split(None, 1) for line in example(warm, "judge.py").splitlines()] == [
        ["ann", "accepted"],
        ["bob", "wrong answer (case 1)"],
        ["cleo", "time limit exceeded (case 1)"],
        ["dan", "runtime error (case 1)"],
    ]


def test_files_go_in_and_come_out(warm: Warm):
    assert example(warm, "files_in_and_out.py").splitlines() == [
        "first.txt, 8 bytes: 2 words",
        "poem.txt, 8 bytes: 3 words",
        "refused: no-such-file",
        "copied out: first.txt poem.txt",
    ]


def test_output_is_seen_while_the_program_runs(warm: Warm):
    said = example(warm, "stream_output.py").splitlines()
    assert said[:2] == ["step 0 (runs)", "step 1 (runs)"]
    assert said[2].startswith("step 2 (")
    assert said[3:] == [
        "ended with 0",
        "21 twice is 42",
        "[1, 2] twice is [1, 2, 1, 2]",
        "stopped by signal 15",
        "terminal: 30 100 /dev/pts/0",
    ]


def test_what_asyncio_gives_up_is_ended(warm: Warm):
    said = example(warm, "with_asyncio.py").splitlines()
    assert said == ["cubes: 0 1 8 27", "given up; still asleep: False"]


def test_forks_go_on_from_what_was_prepared_and_keep_what_they_write(warm: Warm, tmp_path: Path):
    make_rootfs(tmp_path / "rootfs")
    *told, drawn = example(warm, "fork_many.py", str(tmp_path / "rootfs")).splitlines()
    assert told == [f"{number}: found 'what took long', has 2 lines now" for number in range(3)]
    assert drawn == "random numbers: 3 different"


def test_two_containers_of_a_sandbox_share_a_network_and_no_files(warm: Warm):
    assert example(warm, "two_containers.py").splitlines() == [
        "visitor 1 sees the counter's file: False",
        "visitor 2 sees the counter's file: False",
        "the counter kept: 2",
        "in the sandbox: 1 more",
        "without it the page fails: nonzero",
    ]


@pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")
def test_a_server_is_reached_and_reaches_nothing_else(warm: Warm):
    page, call = example(warm, "reach_a_server.py").splitlines()
    first = Path("/usr/share/common-licenses/BSD").read_text().splitlines()[0]
    assert page == f"a page: {first}"
    assert "ConnectionRefusedError" in call


def test_every_example_is_run_by_a_test():
    here = Path(__file__).read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"}
    assert len(names) > 5
    assert {name for name in names if f'(warm, "{name}"' not in here} == set()
