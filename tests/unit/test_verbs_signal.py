"""`kill ID 0` is answered by the verb: the guest hears nothing of it."""

import pytest

from fakes.cli import Cli


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


def test_signal_0_asks_whether_a_container_lives(bz):
    bz.create("one", bz.bundle("sleep"))
    bz("kill", "one", "0")
    bz("start", "one")
    bz("kill", "one", "0")
    bz("kill", "--all", "one", "0")
    bz("kill", "one", "KILL")
    assert "container not running" in bz("kill", "one", "0", check=1).stderr
    assert "container not running" in bz("kill", "--all", "one", "0", check=1).stderr
    assert "signal=0" not in bz.calls()
