"""Checks that need a whole host: systemd, cgroup v2, AppArmor, KVM. `scripts/host` makes one for them.

They use what `scripts/install` put in place, as a user would: the installed programs, Podman's drop-in, the
settings of the machine. So they change the machine, and run nowhere but in one that was made for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
#: emulation inside emulation
TIMEOUT_S = 900.0


class _AtOnce:
    """Shows why a check failed as soon as it has: the others go on for an hour."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            self._terminal.write("".join(f"\n    {line}" for line in lines), flush=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    if terminal := session.config.pluginmanager.get_plugin("terminalreporter"):
        session.config.pluginmanager.register(_AtOnce(terminal))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, stage = Path(__file__).parent, os.environ.get("BUFFERZONE_HOST")
    for item in items:
        if here not in item.path.parents:
            continue
        marked = item.get_closest_marker("stage")
        if stage is None:
            item.add_marker(pytest.mark.skip(reason="needs a whole host of its own: scripts/host RELEASE"))
        elif (marked.args[0] if marked else "checks") != stage:
            item.add_marker(pytest.mark.skip(reason="for the other stage"))
        elif (item.get_closest_marker("as_user") is None) != (os.geteuid() == 0):
            item.add_marker(pytest.mark.skip(reason="for the other user"))


def run(*words: str, status: int = 0, cwd: str | None = None) -> str:
    """What a command printed; it has to end with `status`."""
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )
    assert done.returncode == status, (words, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.strip()


def podman(*words: str, status: int = 0) -> str:
    return run("podman", "--runtime", "bufferzone", *words, status=status)


def how_started(id: str) -> dict[str, str]:
    """The annotations of a container's `state`, and below `log` what its shim wrote down."""
    annotations: dict[str, str] = json.loads(run("bufferzone", "state", id))["annotations"]
    log = Path(f"/run/bufferzone/{id}/shim.log")
    return {**annotations, "log": log.read_text(errors="replace") if log.exists() else ""}


@pytest.fixture(scope="session")
def archive():
    """(name, path) of quickstart's busybox image as a docker archive."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/busybox.tar"
        name = run(sys.executable, "-I", str(SCRIPTS / "busybox_image.py"), path)
        yield name, path


@pytest.fixture(scope="session")
def lasting_image(archive):
    """The name of that image in Podman's store, whose containers stay."""
    name, path = archive
    podman("load", "--quiet", "--input", path)
    return name


@pytest.fixture(scope="session")
def image(lasting_image):
    """The same; what ran of it is removed in the end."""
    yield lasting_image
    podman("rm", "--all", "--force", "--time", "0")
