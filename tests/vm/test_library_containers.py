"""Several containers of one sandbox in a real VM: loopback, root file systems, limits, crashes, a port."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from flow.cli import make_rootfs
from vm.leftovers import cgroups_with
from vm.test_library import python
from vm.warm import Warm, for_a_module

pytestmark = pytest.mark.vm

TWO = """
import bufferzone
serve = "import socket; s = socket.create_server(('127.0.0.1', {{}}))\\n"
serve += "while True: s.accept()[0].sendall(b'{{}}')"
ask = "import socket; print(socket.create_connection(('127.0.0.1', {{}})).recv(9).decode(), end='')"
told = {{}}
with bufferzone.Sandbox(memory_mib=256) as sb:
    cache = sb.container({rootfs!r}, name={name!r}, memory_mib=64)
    other = sb.container()
    boot = ["cat", "/proc/sys/kernel/random/boot_id"]
    told["kernels"] = len({{box.run(boot).stdout for box in (sb, cache, other)}})
    told["seen"] = [box.run(["ls", "/bin/greet"]).ok for box in (sb, cache, other)]
    cache.files.write("/own", "x")
    sb.files.write("/dev/shm/shared", "seen")
    told["own"] = [box.files.exists("/own") for box in (sb, cache, other)]
    told["shared"] = cache.files.read_text("/dev/shm/shared")
    with sb.start(["python3", "-c", serve.format(7001, "sb") + "\\n"]), other.start(
        ["python3", "-c", serve.format(7002, "other")]
    ):
        again = "while ! {{}} 2>/dev/null; do sleep 0.1; done"
        calls = [
            (sb, f'python3 -c "{{ask.format(7002)}}"'),
            (other, f'python3 -c "{{ask.format(7001)}}"'),
            (cache, "/bin/busybox nc 127.0.0.1 7001 </dev/null"),
        ]
        done = [box.run(["sh", "-c", again.format(call)], timeout_s=120) for box, call in calls]
        told["asked"] = [each.stdout for each in done]
    hog = ["sh", "-c", "exec /bin/busybox tail -c 150m /dev/zero"]
    told["small"] = cache.run(hog).verdict
    with sb.container({rootfs!r}, command=hog, memory_mib=32) as crashed:
        told["crashed"] = crashed.wait()
    told["alive"] = [box.run(["true"]).ok for box in (sb, cache, other)]
    told["processes"] = [cache.stats().processes, cache.info().sandbox == sb.name]
    told["exec"] = subprocess.run(
        [{bz!r}, "--root", {root!r}, "exec", cache.name, "echo", "on"], capture_output=True, text=True
    ).stdout
    cache.close()
    told["after"] = [box.run(["true"]).ok for box in (sb, other)]
print(json.dumps(told))
"""
BEHIND = """
import bufferzone, socket, time, urllib.request
with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
rules = ["tcp:192.0.2.7:443"]
with bufferzone.Sandbox(network="passt", ports=[f"127.0.0.1:{port}:8000"], egress=rules) as sb:
    web = sb.container(command=["python3", "-m", "http.server", "8000", "--directory", "/srv"])
    web.files.write("/srv/page", "of the second")
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            print(urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=30).read().decode())
            break
        except OSError:
            time.sleep(0.1)  # a program in the test, which has no event to await
    call = "import socket; socket.create_connection(('198.51.100.1', 80), timeout=30)"
    print(web.run(["python3", "-c", call], timeout_s=60).stderr.splitlines()[-1])
    print(web.files.read_text("/etc/resolv.conf") == sb.files.read_text("/etc/resolv.conf"))
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef) -> Iterator[Warm]:
    yield from for_a_module(tmp_path_factory.mktemp("containers"), guest_image)


def test_they_talk_over_the_loopback_see_their_own_files_and_one_that_crashes_disturbs_nobody(
    warm: Warm, tmp_path: Path
):
    make_rootfs(tmp_path / "rootfs")
    name = f"cache-{os.getpid()}"
    root, bz = str(warm.runtime.root), str(Path(__file__).parents[2] / "bin" / "bz")
    program = TWO.format(rootfs=str(tmp_path / "rootfs"), name=name, root=root, bz=bz)
    told = json.loads(python(warm, "import subprocess\n" + program))
    assert told.pop("kernels") == 1
    assert told.pop("seen") == [False, True, False]
    assert told.pop("own") == [False, True, False]
    assert told.pop("shared") == "seen"
    assert told.pop("asked") == ["other", "sb", "sb"]
    assert (told.pop("small"), told.pop("crashed")) == ("memory-limit", 137)
    assert told.pop("alive") == [True] * 3
    assert told.pop("processes") == [1, True]
    assert told.pop("exec") == "on\n"
    assert told.pop("after") == [True, True]
    assert told == {}
    assert not (tmp_path / "rootfs/own").exists()
    assert cgroups_with(name) == []


@pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")
def test_a_published_port_and_the_egress_rules_of_a_sandbox_are_those_of_its_containers(warm: Warm):
    page, call, names = python(warm, BEHIND).splitlines()
    assert page == "of the second"
    assert "ConnectionRefusedError" in call
    assert names == "True"
