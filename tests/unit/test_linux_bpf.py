"""Loading a program for bpf(2), which a signal breaks off."""

from __future__ import annotations

import errno
import os

import pytest

from bufferzone.linux import bpf

_RETURN_1 = bytes.fromhex("b7000000010000009500000000000000")


@pytest.fixture
def break_off(monkeypatch):
    """How many calls a signal breaks off; returns the list that counts them all."""

    def break_off(times):
        calls = []

        def syscall(number, name, *words, **more):
            calls.append(words[0])
            if len(calls) <= times:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), name)
            return 77

        monkeypatch.setattr(bpf, "syscall", syscall)
        return calls

    return break_off


def test_a_check_that_a_signal_breaks_off_is_asked_for_again(break_off):
    calls = break_off(3)
    assert bpf.load_device_filter(_RETURN_1) == 77
    assert len(calls) == 4


def test_a_kernel_that_never_takes_it_is_told_and_not_asked_for_ever(break_off):
    calls = break_off(1000)
    with pytest.raises(BlockingIOError, match="bpf"):
        bpf.load_device_filter(_RETURN_1)
    assert len(calls) == 10
