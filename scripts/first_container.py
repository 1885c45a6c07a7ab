"""The main job, once: run a container of a real image in a VM through Podman and show what answered.

One attached `podman run`: its process prints its kernel and then waits for the end of stdin, which gives the
time to ask the sandbox what it is (accelerator, boot timeline) while it runs. Needs root and scripts/install.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PODMAN = ["podman", "--runtime", "bufferzone"]
BOOT_ID = "/proc/sys/kernel/random/boot_id"
MEANING = {
    "kvm": "hardware virtualization: full speed, and the wall is the CPU's",
    "tcg": "emulation, because no usable KVM was found: slower, and in QEMU's words not a security boundary",
}


class Failed(Exception):
    """The one plain reason."""


def main() -> int:
    try:
        image = load_image()
        print(f"quickstart: podman --runtime bufferzone run --rm {image} uname -a", flush=True)
        kernel, boot, info, seconds = run_container(image)
    except Failed as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    show(kernel, info, seconds)
    if boot == boot_id():
        print("quickstart: the container answered from the host's own kernel", file=sys.stderr)
        return 1
    print("quickstart: everything works: the container ran in a VM, on a kernel of its own")
    return 0


def boot_id() -> str:
    """What a running kernel alone has, random(4): host and guest may well be of the same release."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def podman(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)


def load_image() -> str:
    """Make the busybox image, load it unless Podman has it, and return its name."""
    with tempfile.TemporaryDirectory() as folder:
        archive = os.path.join(folder, "busybox.tar")
        script = os.path.join(HERE, "busybox_image.py")
        made = subprocess.run(
            [sys.executable, "-I", script, archive], stdout=subprocess.PIPE, text=True, check=False
        )
        if made.returncode:
            raise Failed("cannot make the busybox image")
        name = made.stdout.strip()
        if podman("image", "exists", name).returncode:
            loaded = podman("load", "--quiet", "--input", archive)
            if loaded.returncode:
                raise Failed(f"podman cannot load the image: {loaded.stderr.strip()}")
    return name


def run_container(image: str) -> tuple[str, str, dict[str, object], float]:
    """Run it; returns the kernel's release and boot id it reported, what its sandbox said, and the seconds
    until the answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        id_file = os.path.join(folder, "id")
        command = [*PODMAN, "run", "--rm", "-i", "--cidfile", id_file, image]
        begin = time.monotonic()
        process = subprocess.Popen(
            [*command, "sh", "-c", f"uname -r; cat {BOOT_ID}; uname -a; cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        kernel, boot, line = (process.stdout.readline().strip() for _ in range(3))
        seconds = time.monotonic() - begin
        info: dict[str, object] = {}
        if line:
            print(line)
            with open(id_file, encoding="utf-8") as file:
                info = sandbox_info(file.read().strip())
        process.stdin.close()
        problem = process.stderr.read().strip()
        if process.wait() or not line:
            raise Failed(f"podman run ended with status {process.returncode}: {problem or 'no reason given'}")
    return kernel, boot, info, seconds


def sandbox_info(container: str) -> dict[str, object]:
    """What the shim says of its VM: wire/shim.py, InfoResponse."""
    sys.path.insert(0, os.path.join(os.path.dirname(HERE), "src"))  # what scripts/install has just installed
    from bufferzone import state
    from bufferzone.client.connection import Client
    from bufferzone.errors import BufferzoneError
    from bufferzone.wire import shim
    from bufferzone.wire.proto import Empty

    try:
        with Client.connect(state.directory(state.runtime_root(), container)) as client:
            answer = client.call("Info", Empty(), service=shim.SERVICE, timeout_s=10)
    except BufferzoneError as error:
        raise Failed(f"the sandbox does not answer: {error.line()}") from error
    info: dict[str, object] = json.loads(answer.json)
    return info


def show(kernel: str, info: dict[str, object], seconds: float) -> None:
    accelerator = str(info.get("accelerator", "unknown"))
    print(f"\nhost kernel:       {platform.release()}")
    print(f"container kernel:  {kernel}")
    print(f"accelerator:       {accelerator} ({MEANING.get(accelerator, 'no meaning known')})")
    print(f"first answer:      {seconds:.1f} s after `podman run`")
    timeline = info.get("timeline")
    if isinstance(timeline, list) and timeline:
        print("boot timeline:     ms since the shim began, when each phase was over")
        for phase, at_ms in timeline:
            print(f"  {at_ms:>8.0f}  {phase}")
    print()


if __name__ == "__main__":
    sys.exit(main())
