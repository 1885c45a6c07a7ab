"""What a shim holds once its sandbox runs, in every thread, and what hooks of its container have."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from bufferzone import state
from bufferzone.audit import held
from bufferzone.linux.syscalls import NUMBERS
from bufferzone.shim import rights
from flow.cli import Cli, needs_host

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


def shim_of(bz, id):
    return held.read(state.owner_pid(str(bz.root / id)))


def test_every_thread_of_a_shim_that_runs_has_given_up_what_it_does_not_need(bz):
    bz.create("one", bz.bundle("pause"))
    shim = shim_of(bz, "one")
    assert len(shim.threads) > 3
    for thread in shim.threads:
        for which, names in thread.capabilities.items():
            assert set(names) <= set(rights.KEPT), (thread.name, which)
        assert (thread.no_new_privileges, thread.seccomp) == (True, 2), thread.name


def test_threads_that_carry_what_the_guest_says_hold_nothing_to_reach_the_host_with(bz):
    bz.create("one", bz.bundle("pause"))
    held_by = [set(thread.capabilities["permitted"]) for thread in shim_of(bz, "one").threads]
    assert {"CAP_KILL", "CAP_SYSLOG"} in held_by  # the agent's reader
    assert set() in held_by  # a console's


def test_hooks_have_all_rights_and_the_shim_has_not(bz, tmp_path):
    copied = tmp_path / "status"
    hook = {"path": "/bin/cp", "args": ["cp", "/proc/self/status", str(copied)]}
    bz.create("one", bz.bundle("pause", hooks={"createRuntime": [hook]}))
    rows = dict(line.split(":\t", 1) for line in copied.read_text().splitlines() if ":\t" in line)
    with open("/proc/self/status", encoding="ascii") as file:
        ours = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    assert (rows["CapEff"], rows["CapBnd"]) == (ours["CapEff"], ours["CapBnd"])
    assert (rows["NoNewPrivs"], rows["Seccomp"]) == (ours["NoNewPrivs"], ours["Seccomp"])
    shim = shim_of(bz, "one")
    for thread in shim.threads:
        assert set(thread.capabilities["permitted"]) <= set(rights.KEPT)


def test_calls_that_a_shim_has_no_use_for_do_not_exist_for_it():
    libc = ctypes.CDLL(None, use_errno=True)

    def attempt(name):
        libc.syscall(NUMBERS[name], 0, 0, 0, 0, 0, 0)
        return ctypes.get_errno()

    pid = os.fork()
    if pid == 0:
        rights.give_up(hooks=False)
        refused = [attempt(name) for name in ("init_module", "ptrace", "kexec_load", "open_by_handle_at")]
        os._exit(refused != [errno.ENOSYS] * 4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
