"""What conmon and containerd's shim do with a runtime: run it, read the pid file, reap that pid as an orphan.

fake_conmon.py PID_FILE COMMAND...      prints "created STATUS", then "ended STATUS" of the pid in the file
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main(pid_file: str, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    status = subprocess.run(command).returncode
    print(f"created {status}", flush=True)
    if status == 0:
        with open(pid_file) as file:
            text = file.read()
        assert text.isdigit(), text
        _, ended = os.waitpid(int(text), 0)
        print(f"ended {os.waitstatus_to_exitcode(ended)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
