"""A started helper's end, asked for by several threads at once: the shim's watcher and its callers do so."""

import os
import signal
import threading
from pathlib import Path

import pytest

from bufferzone import spawn
from bufferzone.errors import HostError
from bufferzone.spawn import Child


def sleeper() -> Child:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return Child("sleeper", pid, os.pidfd_open(pid))


def wait_into(child: Child, seen: list[int | None]) -> None:
    seen.append(child.wait_exit(10))


def test_every_thread_that_waits_learns_the_same_status() -> None:
    for _ in range(20):
        seen: list[int | None] = []
        with sleeper() as child:
            threads = [threading.Thread(target=wait_into, args=(child, seen)) for _ in range(4)]
            for thread in threads:
                thread.start()
            child.kill()
            for thread in threads:
                thread.join()
        assert seen == [-signal.SIGKILL] * 4


def test_a_deaf_child_ends_by_kill_alone() -> None:
    with spawn.start("sleeper", ["/bin/sleep", "1000"], lambda talk: None, deaf=True) as child:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN, *spawn.ENDING):
            child.kill(number)
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        )
        assert int(status["ShdPnd"], 16) == sum(1 << number - 1 for number in set(spawn.ENDING))
        assert child.wait_exit(0.05) is None
        child.kill()
        assert child.wait_exit(10) == -signal.SIGKILL


def test_a_wait_that_runs_out_of_time_tells_nothing_and_may_be_repeated() -> None:
    with sleeper() as child:
        assert child.wait_exit(0.01) is None
        child.kill(signal.SIGTERM)
        assert child.wait_exit(10) == -signal.SIGTERM
        assert child.wait_exit() == -signal.SIGTERM


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """No signal of ours arrives, as under an AppArmor profile without a signal rule."""

    def send(pidfd: int, number: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(signal, "pidfd_send_signal", send)


def test_a_child_that_takes_no_signal_and_ends_by_itself_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    with spawn.start("false", ["/bin/false"], lambda talk: None) as child:
        child.kill()
    assert child.wait_exit() == 1


def test_a_child_that_takes_no_signal_and_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    monkeypatch.setattr(spawn, "START_TIMEOUT_S", 0.01)
    child = sleeper()
    with pytest.raises(HostError, match=f"^cannot kill sleeper, process {child.pid}$"):
        child.close()
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
