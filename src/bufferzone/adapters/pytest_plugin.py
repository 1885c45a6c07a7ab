"""The fixtures `sandbox` and `make_sandbox` for pytest, which finds them where bufferzone is installed.

    @pytest.mark.sandbox("python:3.12-slim", memory_mib=256)
    def test_it_runs_where_it_can_harm_nobody(sandbox):
        assert sandbox.run(["python3", "-c", "print(6 * 7)"]).stdout == "42\\n"

What the mark is given is what `bufferzone.Sandbox` takes. Without an image it is the ini setting
`sandbox_image`, or else the host's programs.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

import bufferzone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting."""
    parser.addini("sandbox_image", "the image of the fixture `sandbox`, where its mark names none")


def pytest_configure(config: pytest.Config) -> None:
    """The mark."""
    line = "sandbox(image=None, **options): what the fixture `sandbox` starts, as bufferzone.Sandbox"
    config.addinivalue_line("markers", line)


@pytest.fixture
def make_sandbox(request: pytest.FixtureRequest) -> Iterator[Callable[..., bufferzone.Sandbox]]:
    """Starts a sandbox with the options of `bufferzone.Sandbox`; all are removed after the test."""
    usual = request.config.getini("sandbox_image") or None
    with ExitStack() as stack:

        def make(image: Any = usual, **options: Any) -> bufferzone.Sandbox:
            return stack.enter_context(bufferzone.Sandbox(image, **options))

        yield make


@pytest.fixture
def sandbox(
    request: pytest.FixtureRequest, make_sandbox: Callable[..., bufferzone.Sandbox]
) -> bufferzone.Sandbox:
    """One sandbox, of the test's mark."""
    mark = request.node.get_closest_marker("sandbox")
    return make_sandbox(*mark.args, **mark.kwargs) if mark else make_sandbox()
