"""Two processes run the tests together: every test once, and what shares something in one of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = {
    "unit/test_a.py": "",
    "unit/test_b.py": "",
    "vm/test_containerd.py": "",
    "vm/test_cri.py": "from vm.cri import x\n",
    "vm/test_docs.py": "from vm.test_containerd import y\n",
}
BODY = "def test_one():\n    assert True\n\n\ndef test_two():\n    assert True\n"


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    place = tmp_path / "tests"
    for name, head in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(head + BODY)
    shutil.copy(TESTS / "conftest.py", place)
    (place / "vm/conftest.py").write_text(
        "import pytest\n\n\n@pytest.fixture(scope='session')\ndef guest_image(): ...\n"
    )
    (place / "vm/cri.py").write_text("x = 1\n")
    (place / "vm/test_containerd.py").write_text("y = 1\n" + BODY)
    (tmp_path / "claims").mkdir()
    return place


def ran(tests: Path, *options: str) -> list[str]:
    """The files whose tests a process has run, in order."""
    words = [
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "-o",
        f"pythonpath={tests}",
        "--rootdir",
        str(tests),
    ]
    words += ["--import-mode=importlib", "--claims", str(tests.parent / "claims"), *options, str(tests)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(\S+)::test_\w+ (?:PASSED|SKIPPED)", done.stdout, re.MULTILINE)
    assert len(found) == 2 * len(set(found)), "half a file"
    return [name.rpartition("/tests/")[2] for name in dict.fromkeys(found)]


def test_alone_a_process_runs_all_in_either_order(tests: Path) -> None:
    assert ran(tests) == list(FILES)
    for claim in (tests.parent / "claims").iterdir():
        claim.unlink()
    assert ran(tests, "--from-the-end") == list(reversed(FILES))


def test_what_another_has_is_left_to_it_and_so_is_what_shares_something_with_that(tests: Path) -> None:
    claims = tests.parent / "claims"
    (claims / "test_a.py").touch()
    (claims / "bz-test").touch()
    assert ran(tests, "--from-the-end") == ["vm/test_cri.py", "unit/test_b.py"]
    assert {path.name for path in claims.iterdir()} == {"test_a.py", "test_b.py", "bz-test", "k8s.io"}
    assert ran(tests) == []
