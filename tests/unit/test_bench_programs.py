"""Times of programs as `bz bench` takes them, on the programs of this host."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bufferzone.bench import programs
from bufferzone.errors import HostError

SH = "/bin/sh"


def begin(tmp_path: Path, script: str) -> programs.Program:
    return programs.Program([SH, "-c", script], str(tmp_path / "errors"))


def test_the_first_byte_comes_before_the_end(tmp_path):
    program = begin(tmp_path, "echo first; read line </dev/null; sleep 0.2; echo second")
    programs.await_all([program], 20)
    assert program.output == b"first\nsecond\n"
    assert program.first_ms is not None
    assert program.total_ms is not None
    assert program.first_ms + 150 < program.total_ms
    program.close()


def test_its_stdin_is_empty_and_not_the_hosts_null_device(tmp_path):
    script = "[ /proc/self/fd/0 -ef /dev/null ] && echo null; read line; echo $?"
    program = begin(tmp_path, script)
    programs.await_all([program], 20)
    assert program.output == b"1\n"
    program.close()


def test_a_detached_process_that_holds_stdout_is_not_waited_for(tmp_path):
    begun = time.monotonic()
    program = begin(tmp_path, "(sleep 0.1; echo late; exec sleep 3) & exit 0")
    programs.await_all([program], 20, first_byte=True)
    assert program.output == b"late\n"
    assert time.monotonic() - begun < 2
    program.close()


def test_a_program_that_fails_is_told_with_its_last_words(tmp_path):
    program = begin(tmp_path, "echo one >&2; echo no such thing >&2; exit 3")
    with pytest.raises(HostError, match="no such thing"):
        programs.await_all([program], 20)
    program.close()


def test_a_program_that_prints_nothing_is_an_error_where_a_byte_is_expected(tmp_path):
    program = begin(tmp_path, "exit 0")
    with pytest.raises(HostError, match="printed nothing"):
        programs.await_all([program], 20, first_byte=True)
    program.close()


def test_a_program_that_does_not_end_is_given_up_and_killed(tmp_path):
    program = begin(tmp_path, "exec sleep 100")
    with pytest.raises(HostError, match="no end after"):
        programs.await_all([program], 0.1)
    program.close()
    assert not Path(f"/proc/{program.pid}").exists()


def test_a_program_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(HostError, match="cannot start"):
        programs.Program(["/nonexistent/runtime"], str(tmp_path / "errors"))


ORPHANS = """
import sys
sys.path.insert(0, sys.argv[1])
from bufferzone.bench import programs
from bufferzone.linux.process import become_subreaper
become_subreaper()
programs.watch_children()
# two generations, in sessions of their own: what a detached runtime leaves behind
words = ["/bin/sh", "-c", "setsid sh -c 'setsid sleep 100 & exec sleep 100' >/dev/null & exit 0"]
program = programs.run(words, sys.argv[2], 20)
before = len(programs.descendants())
programs.end_all()
print(before > 0, programs.descendants())
"""


def test_whatever_a_program_leaves_behind_is_ended(tmp_path):
    source = str(Path(programs.__file__).parents[2])
    words = [sys.executable, "-c", ORPHANS, source, str(tmp_path / "errors")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True []\n", done.stderr
