"""What conmon and containerd's shim do with a runtime: run it, read the pid file, reap that pid as an orphan.

fake_conmon.py [--alone] [--stdout FD] PID_FILE COMMAND...   prints "created STATUS", "ended STATUS" of that

With --alone it prints "alone" when it has no child any more: newer versions of conmon do not end before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main(pid_file: str, command: list[str], stdout: int | None, *, alone: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    status = subprocess.run(command, stdout=stdout).returncode
    if stdout is not None:
        os.close(stdout)
    print(f"created {status}", flush=True)
    if status == 0:
        with open(pid_file) as file:
            text = file.read()
        assert text.isdigit(), text
        _, ended = os.waitpid(int(text), 0)
        print(f"ended {os.waitstatus_to_exitcode(ended)}", flush=True)
    if alone:
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        print("alone", flush=True)


if __name__ == "__main__":
    words, stdout, alone = sys.argv[1:], None, False
    if words[0] == "--alone":
        alone, words = True, words[1:]
    if words[0] == "--stdout":
        stdout, words = int(words[1]), words[2:]
    main(words[0], words[1:], stdout, alone=alone)
