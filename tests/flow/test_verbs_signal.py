"""`kill ID 0` is answered by the verb: the guest hears nothing of it."""

import pytest

from flow.cli import Cli, needs_host

pytestmark = needs_host
#: a shim that ends with an error where signal 0 reaches it
_DEAF_TO_0 = """
from bufferzone.shim import task

real = task.TaskService.kill

def kill(self, peer, request):
    if not request.signal:
        raise AssertionError("signal 0 came to the shim")
    return real(self, peer, request)

task.TaskService.kill = kill
"""


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    cli.odd_shim(_DEAF_TO_0)
    yield cli
    cli.close()


def test_signal_0_asks_whether_a_container_lives(bz):
    bz.create("one", bz.bundle("pause"))
    bz("kill", "one", "0")
    bz("start", "one")
    bz("kill", "one", "0")
    bz("kill", "--all", "one", "0")
    bz("kill", "one", "KILL")
    assert "container not running" in bz("kill", "one", "0", check=1).stderr
    # runc 1.1 says yes to this one; who asks whether a container lives is told that it does not
    assert "container not running" in bz("kill", "--all", "one", "0", check=1).stderr
    bz("kill", "--all", "one", "KILL")  # as with runc 1.1 and crun 1.8: nothing of it is left to be signalled
    assert "signal 0" not in (bz.root / "one" / "shim.log").read_text()
