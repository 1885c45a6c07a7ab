"""Has a template made now, by the shim's program: it starts the VM, and tells its steps on our stdout."""

from __future__ import annotations

import os
import subprocess

from bufferzone import jsontext, programs, state
from bufferzone.errors import HostError


def make(root: str, *, vcpus: int, memory_mib: int) -> None:
    """Make the template of the settings' shape with this size, where 0 means the settings'; it takes the time
    of a cold boot. `root` is the state root, whose probe of KVM counts.

    Raises `HostError` with what the maker says; there is no new template then.
    """
    if os.geteuid() != 0:
        raise HostError("only root can make templates", hint="run as root")
    order = {
        "vcpus": vcpus,
        "memory_mib": memory_mib,
        "root": root,
        "run_directory": state.lease_root(),
    }
    done = subprocess.run(
        programs.argv("shim", "template"),
        input=jsontext.dumps(order).encode(),
        stderr=subprocess.PIPE,
        env=programs.ENVIRONMENT,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").splitlines() or ["it wrote nothing"]
        raise HostError(
            f"cannot make a template: {lines[-1].removeprefix('containerd-shim-bufferzone-v2: ')}",
            code="template-failed",
        )
