"""fork(2) into a new PID namespace, while the caller stays where it is.

Source: pid_namespaces(7), PR_SET_CHILD_SUBREAPER in prctl(2).
"""

from __future__ import annotations

import os

from bufferzone.linux import process
from bufferzone.linux.identity import is_real_root


def fork() -> int:
    """os.fork() whose child is PID 1 of a new PID namespace; later children of ours are not in it.

    The calling process has one thread. Raises OSError; then there is no child.
    """
    if not is_real_root():
        return _fork_through_another()
    here = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.unshare(process.CLONE_NEWPID)  # for children only: this process stays where it is
        pid = -1
        try:
            pid = os.fork()
            return pid
        finally:
            if pid != 0:
                process.setns(here, process.CLONE_NEWPID)
    finally:
        os.close(here)


def _fork_through_another() -> int:
    """The same without root: the way back into the machine's PID namespace is closed to us, so a process in
    between goes there, has the child and ends, which makes the child ours.
    """
    report, gate = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    process.become_subreaper(True)
    try:
        between = os.fork()
        if between == 0:
            _have_child(report[1])
            os.close(gate[1])
            gate = (gate[0], -1)
            # the parent answers when the one in between is gone, else PR_SET_PDEATHSIG would be about that
            if os.read(gate[0], 1) != b"+":
                os._exit(1)
            return 0
        os.close(report[1])
        report = (report[0], -1)
        answer = int(os.read(report[0], 32) or b"0")
        os.waitpid(between, 0)
        if answer <= 0:
            raise OSError(-answer, os.strerror(-answer))
        os.write(gate[1], b"+")
        return answer
    finally:
        for fd in {*report, *gate} - {-1}:
            os.close(fd)
        process.become_subreaper(False)


def _have_child(report: int) -> None:
    """Fork into a new PID namespace, tell the pid (minus the error number) and end; the child returns."""
    try:
        process.unshare(process.CLONE_NEWPID)
        pid = os.fork()
    except OSError as error:
        os.write(report, b"%d" % -(error.errno or 1))
        os._exit(1)
    if pid:
        os.write(report, b"%d" % pid)
        os._exit(0)
