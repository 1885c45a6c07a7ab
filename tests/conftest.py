"""What every test can rely on: VM tests come last and say what they miss, and the guest image is built once.

A warning is an error (pyproject.toml), and so is an exception that nobody saw in a thread or a finalizer:
pytest turns those into warnings.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

VM_TESTS = Path(__file__).parent / "vm"
VM_PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "podman": "podman"}


#: what a test file uses that the machine has once: files of one word are never run at the same time
_HAVE_ONCE = {
    "vm.containerd": "bz-test",
    "vm.test_containerd": "bz-test",
    "vm.cri": "k8s.io",
}  # namespaces of containerd: one state directory


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two processes can run the tests together: one from the first file on, the other from the last."""
    parser.addoption("--claims", metavar="DIR", help="run a file unless another process has it in there")
    parser.addoption("--from-the-end", action="store_true", help="the last file first")


def _claim_of(file: Path) -> str:
    """The name under which a file is claimed: its own, or that of what it has in common with others."""
    text = file.read_text()
    shared = [
        name
        for module, name in _HAVE_ONCE.items()
        if f"from {module} import" in text or file.match(f"{module.replace('.', '/')}.py")
    ]
    return shared[0] if shared else file.name


class Claims:
    """Which files are ours, and not another process's with the same directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ours: dict[str, bool] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """As pytest's own, for our files. What a test leaves set up depends on which one is next."""
        if session.testsfailed or session.config.option.collectonly:
            return None
        items = filter(self._is_ours, session.items)
        item = next(items, None)
        while item is not None:
            following = next(items, None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _is_ours(self, item: pytest.Item) -> bool:
        name = _claim_of(item.path)
        if name not in self._ours:
            try:
                (self._directory / name).touch(exist_ok=False)
                self._ours[name] = True
            except FileExistsError:
                self._ours[name] = False
        return self._ours[name]


def _missing_for_vm() -> str:
    """Why this machine or user cannot run VM tests, as one line; empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    for program, package in VM_PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package}"
    if not os.path.exists("/usr/local/bin/bufferzone"):
        return "bufferzone is not installed: scripts/install"
    return ""


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background job ignores SIGINT, and so would every program that is started here."""
    if config.option.claims:
        config.pluginmanager.register(Claims(Path(config.option.claims)))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything in tests/vm is a VM test. They come last, so that a typing error shows in seconds, and are
    skipped where they cannot run."""
    for item in items:
        if VM_TESTS in item.path.parents:
            item.add_marker("vm")
    items.sort(key=lambda item: item.get_closest_marker("vm") is not None)
    if config.option.from_the_end:
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: -files.index(item.path))
    reason = _missing_for_vm()
    for item in items:
        if item.get_closest_marker("vm") is None:
            continue
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        else:
            item.fixturenames.insert(0, "guest_image")  # ahead of the fixtures that boot something


@pytest.fixture(scope="session")
def guest_image():
    """The current guest image, built now if it is missing or its inputs changed; of the settings' guest."""
    from bufferzone import config
    from bufferzone.guestimage import build, current, store

    directory, guest = store.default_store(), config.load().guest
    if guest == current.AUTO:
        guest = current.built_guest(directory)
    return build.ensure_image(directory, guest=guest, progress=lambda line: print(f"image: {line}"))
