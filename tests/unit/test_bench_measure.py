"""A round that was not what its column says is told with what the shim said of it."""

from __future__ import annotations

import json
import sys

import pytest

from bufferzone.bench import measure
from bufferzone.bench.runtimes import Runtime
from bufferzone.errors import HostError


class Started(Runtime):
    """Its `state` says how it began."""

    def __init__(self, directory, begun):
        program = directory / "runtime"
        state = json.dumps({"annotations": {"bufferzone.start": begun}})
        program.write_text(f"#!{sys.executable} -IS\nprint({state!r})\n")
        program.chmod(0o755)
        super().__init__("bufferzone-warm", [str(program)])
        self.directory = str(directory)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("", "bufferzone-warm: the sandbox started cold"),
        (
            "something else\n2026 cannot use the template: gone\n",
            "bufferzone-warm: the sandbox started cold; its shim said: 2026 cannot use the template: gone",
        ),
    ],
)
def test_a_warm_start_that_was_cold_is_told_with_the_reason(tmp_path, log, told):
    (tmp_path / "root" / "c").mkdir(parents=True)
    if log:
        (tmp_path / "root" / "c" / "shim.log").write_text(log)
    measure._check_kind(Started(tmp_path, "warm"), "c")
    with pytest.raises(HostError) as caught:
        measure._check_kind(Started(tmp_path, "cold"), "c")
    assert caught.value.message == told
