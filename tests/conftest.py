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


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so would every program that is started here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in tests/vm is a VM test. They come last, so that a typing error shows in seconds, and are
    skipped where they cannot run."""
    for item in items:
        if VM_TESTS in item.path.parents:
            item.add_marker("vm")
    items.sort(key=lambda item: item.get_closest_marker("vm") is not None)
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
    """The current guest image, built now if it is missing or its inputs changed."""
    from bufferzone.guestimage import build, store

    return build.ensure_image(store.default_store(), progress=lambda line: print(f"image: {line}"))
