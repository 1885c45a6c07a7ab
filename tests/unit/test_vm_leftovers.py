"""What a killed shim left is removed, or told of: not every error means that it is gone."""

from __future__ import annotations

import pytest

from bufferzone import state
from bufferzone.vm import leftovers


def network_at(directory, path):
    record = {"networks": [{"identity": [1, 2], "path": str(path), "taps": []}]}
    state.write_leftovers(str(directory), record)
    return str(directory)


def test_a_network_namespace_that_is_gone_takes_all_of_ours_along(tmp_path):
    (tmp_path / "file").write_text("")
    for gone in (tmp_path / "none", tmp_path / "file" / "below", "/proc/4194304/ns/net"):
        assert leftovers.clean(network_at(tmp_path, gone)) == []


def test_a_network_namespace_that_cannot_be_opened_is_told_of(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    (line,) = leftovers.clean(network_at(tmp_path, loop))
    assert line.startswith(f"taps in {loop}: ")
    assert "Too many levels of symbolic links" in line


@pytest.mark.parametrize("path", ["/etc/hostname", "/proc/self/ns/net"])
def test_a_namespace_of_somebody_else_is_left_alone(tmp_path, path):
    assert leftovers.clean(network_at(tmp_path, path)) == []
