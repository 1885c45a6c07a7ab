"""The blocks of the pages that root runs, with this checkout's programs and a state of their own.

A block that calls `ctr` has a containerd of ours, and "$IMAGE" is an image there. `vm/pages.py` says which
other blocks there are; test_docker.py and test_rootless.py run theirs, test_library.py those of its page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bufferzone import config
from bufferzone.adapters import mcp_server
from vm import pages
from vm.podman import DROP_IN, ROOT
from vm.test_containerd import containerd, image, shims

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

#: what a block needs that not every machine has
TOOLS = {
    "ctr ": ("containerd", "ctr"),
    "container checkpoint": ("criu",),
    "--egress": ("passt",),
}
#: a machine without a network, with guest images and container images of its own: below $0
_OTHER_MACHINE = """
for name in images storage; do
    mkdir -p "$0/$name" /var/lib/bufferzone/$name
    mount --bind "$0/$name" /var/lib/bufferzone/$name
done
exec "$@"
"""
_OFFLINE = ("unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", _OTHER_MACHINE)
__all__ = ["containerd", "image"]  # fixtures


@pytest.fixture(scope="module")
def programs(podman):
    """The environment of a block: podman, bufferzone and bz on the PATH, and an image named busybox."""
    folder = podman.program.parent
    options, words = podman.argv("X")[1:-1], podman.argv("run", "--network", "X")
    pages.write_podman(folder / "podman", options, words[len(options) + 2 : -2])
    pages.write_ours(folder / "bz", "bufferzone.cli.bz.main", podman.state)
    server = "bufferzone.adapters.mcp_server"
    pages.write_ours(folder / "bufferzone-mcp", server, podman.state, f"{sys.executable} -I")
    podman("tag", podman.image, "localhost/busybox")
    environment = podman.environment()
    return {**environment, "PATH": f"{folder}:{environment['PATH']}"}


def missing(text: str) -> list[str]:
    """The programs that are missing here for this block."""
    wanted = [name for word, names in TOOLS.items() if word in text for name in names]
    return [name for name in wanted if shutil.which(name) is None]


@pytest.fixture
def environment(programs, request):
    """What a block finds. It is asked for after the block is known: few need a containerd."""
    text = request.node.callspec.params["block"].text
    if lacking := missing(text):
        pytest.skip(f"not installed: {' '.join(lacking)}")
    if "bufferzone-mcp" in text:
        pytest.importorskip("mcp")
    if "ctr " not in text:
        return programs
    daemon, image = (request.getfixturevalue(name) for name in ("containerd", "image"))
    ours = {"CONTAINERD_ADDRESS": daemon.socket, "CONTAINERD_NAMESPACE": "bz-test", "IMAGE": image}
    return {**programs, **ours}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory that everybody may enter, as most are."""
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("block", pages.params("sh"))
def test_a_block_of_the_pages_runs(environment, block, place):
    printed = pages.run(block, pages.shell(block.text), environment, place)
    assert block.printed in (None, printed)
    text, said = block.text, printed.splitlines()
    if "echo hello" in text:
        assert said[0] == "hello"
    if "uname -r" in text:
        assert os.uname().release not in said
        assert any(re.match(r"\d+\.\d+", line) for line in said), said
    if "container restore saved" in text:
        assert said.count("saved") >= 2, said
    if "template make" in text:
        rows = [line.split() for line in said]
        assert [row[0] for row in rows].index("KEY") < len(rows) - 1, said  # and below it what was made
    if "ctr " in text:
        assert shims() == []


@pytest.mark.parametrize("block", pages.params("python", without=[ROOT / "docs" / "library.md"]))
def test_a_python_program_of_the_pages_runs(podman, environment, block, place):
    printed = pages.run(block, pages.python(block.text, podman.state), environment, place)
    assert block.printed in (None, printed)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="not installed: skopeo")
def test_what_the_page_carries_runs_on_a_machine_without_a_network(programs, place):
    block = {block.kind: block for block in pages.blocks([pages.TASKS / "air-gapped.md"])}
    pages.run(block["online"], pages.shell(block["online"].text), programs, place)
    argv = pages.shell(block["offline"].text, (*_OFFLINE, str(place)))
    assert block["offline"].printed == pages.run(block["offline"], argv, programs, place)
    assert len(list(place.glob("images/*/vmlinux"))) == 1
    (place / "guest.tar").unlink()  # it is large, and pytest keeps directories


def test_the_settings_of_the_page_about_untrusted_code_are_ours(place):
    (place / "config.toml").write_text(pages.file_of("untrusted-code.md", "toml"))
    assert config.load([str(place / "config.toml")]).kvm == "require"


def test_the_file_of_podmans_page_makes_the_runtime_podmans_default(podman, place):
    shown = pages.file_of("podman.md", "toml")
    (place / "containers.conf").write_text(DROP_IN.read_text().replace("[engine]\n", shown, 1))
    argv = podman.argv("info", "--format", "{{.Host.OCIRuntime.Name}}")
    at = argv.index("--runtime")
    environment = {**podman.environment(), "CONTAINERS_CONF": str(place / "containers.conf")}
    done = subprocess.run(
        argv[:at] + argv[at + 2 :], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "bufferzone\n"


def test_an_agents_settings_name_a_program_of_ours_and_flags_that_it_has():
    (server,) = json.loads(pages.file_of("agent.md", "json"))["mcpServers"].values()
    told = mcp_server.arguments(server["args"])
    assert server["command"] == "bufferzone-mcp"
    assert (told.memory_mib, told.sessions) == (256, 4)
