"""A caller with umask 0: the stores and run directories that we make in passing stay ours."""

import os

import pytest

from bufferzone.cli.bz import main as bz
from bufferzone.shim import __main__ as shim


@pytest.mark.parametrize("program", [bz, shim])
def test_what_is_made_is_for_nobody_else_to_write(program, tmp_path, capfd):
    before = os.umask(0)
    try:
        program.main(["--version"])
        os.makedirs(tmp_path / "run/uids", 0o700)
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o022 == 0
