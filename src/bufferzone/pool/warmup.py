"""The first container of a VM, run before anybody waits for it: it costs the guest ten times the second.

Under TCG the code that makes a container, executes a program and ends it is translated on first use, and
the agent takes pages and paths it never touched. What was learned stays in QEMU and in the guest's memory.
Of the container nothing stays but an empty tree below the agent's own mount of the share, which containers
do not see.
"""

from __future__ import annotations

import json
import os
import shutil
import struct

from bufferzone.errors import GuestError, HostError
from bufferzone.log import passing_over
from bufferzone.model import Bind
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.storage.share import Tree
    from bufferzone.vm.agent_client import AgentClient

_ID = "warmup"
_ROUNDS = 2
_ANSWER_S = 60.0
_STREAMS = (agent.STDOUT, agent.STDERR)
_TEXT = b"ready\n"
_BASE = 0x400000
# x86-64: write(1, text, 6), exit(0); the text comes right behind
_CODE = bytes.fromhex(
    "b801000000"  # mov eax, 1
    "bf01000000"  # mov edi, 1
    "488d3512000000"  # lea rsi, [rip + 18]
    "ba06000000"  # mov edx, 6
    "0f05"  # syscall
    "b83c000000"  # mov eax, 60
    "31ff"  # xor edi, edi
    "0f05"  # syscall
    "9090"  # nop, nop
)
#: BPF_RET | BPF_K, SECCOMP_RET_ALLOW: the path of a filter, without a rule
_ALLOW = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)


def program() -> bytes:
    """A static ELF program of one segment that writes a line and exits: no image has to bring one.

    Source: elf(5); System V ABI, AMD64 supplement.
    """
    body = _CODE + _TEXT
    size = 64 + 56 + len(body)
    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, 62, 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + body


def run_first_container(client: AgentClient, tree: Tree, directory: str) -> None:
    """Create, run, read, wait for and delete a container whose rootfs is made below `directory`.

    Raises `VmmError` or `GuestError`: then this VM is not one to give to anybody.
    """
    rootfs = os.path.join(directory, _ID)
    try:
        _make_rootfs(rootfs)
        tree.add(Bind(source=rootfs, name=_ID))
        try:
            for _ in range(_ROUNDS):
                _run(client)
                client.call("Prefork", Empty(), Empty, timeout_s=_ANSWER_S)
        finally:
            tree.remove(_ID)
            shutil.rmtree(rootfs)
    except OSError as error:
        raise HostError(f"cannot prepare the warm-up: {error.strerror}: {error.filename}") from error


def _make_rootfs(rootfs: str) -> None:
    for name in ("proc", "dev", "sys", "etc"):
        os.makedirs(os.path.join(rootfs, name), 0o755)
    with open(os.path.join(rootfs, "run"), "wb") as file:
        file.write(program())
        os.fchmod(file.fileno(), 0o755)
    with open(os.path.join(rootfs, "etc/hosts"), "wb") as file:
        file.write(b"\n")
    os.chmod(rootfs, 0o755)


def _run(client: AgentClient) -> None:
    """One container as `shim.process` asks for it: what is sent together is read together in the guest."""
    ref = agent.ProcessRef(id=_ID)
    spec = json.dumps(_spec(), separators=(",", ":")).encode()
    request = agent.CreateRequest(id=_ID, spec=spec, seccomp=_ALLOW)
    reads = [agent.ReadRequest(id=_ID, stream=stream, limit=agent.CHUNK) for stream in _STREAMS]
    requests = [("Read", read) for read in reads]
    created, *outputs, closed, wait = client.send(
        ("Create", request), *requests, ("CloseStdin", ref), ("Wait", ref), timeout_s=_ANSWER_S
    )
    created.result(agent.PidResponse)
    closed.result(Empty)
    client.call("Start", ref, Empty, timeout_s=_ANSWER_S)
    output = b""
    for read, pending in zip(reads, outputs, strict=True):
        data = pending.result(agent.ReadResponse).data
        while data and len(output) <= len(_TEXT):
            output += data
            data = client.call("Read", read, agent.ReadResponse, timeout_s=_ANSWER_S).data
    ended = wait.result(agent.WaitResponse)
    client.call("Delete", ref, Empty, timeout_s=_ANSWER_S)
    if ended.exit_status != 0 or output != _TEXT:
        raise GuestError(f"the warm-up ended with status {ended.exit_status}, wrote {output[:40]!r}")


def _spec() -> dict[str, Any]:
    """A config.json such as engines write."""
    own = f"{agent.SHARE_PATH}/{_ID}"
    safe = ["nosuid", "noexec", "nodev"]
    capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": ["/run"],
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
        },
        "root": {"path": own},
        "hostname": _ID,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": safe},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*safe, "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": f"{own}/etc/hosts", "options": ["rbind"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
            "resources": {"pids": {"limit": 64}},
        },
    }


def warm_host() -> None:
    """The host's part of a first container: libraries that are loaded on first use."""
    from bufferzone.linux import libseccomp

    with passing_over("load libseccomp", HostError):  # the first container that needs it says so
        libseccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW"})
