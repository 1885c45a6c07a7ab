"""Secrets of a container in a VM: nobody finds them on the host, and the guest has none of the host's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from fakes.canaries import Canaries
from vm.verbs import bundle, config, write_config
from vm.warm import Warm

pytestmark = pytest.mark.vm

SCRIPT = (
    'read line; echo "$line" >/tmp/in; cat /secret >/tmp/mounted; '
    'for f in /proc/*/environ; do cat "$f" >/dev/null; done; cat /proc/*/environ /proc/cmdline; '
    "echo; echo up; exec sleep 1000"
)


@pytest.fixture
def warm(tmp_path: Path, guest_image: ImageRef, template: Path) -> Iterator[Warm]:
    warm = Warm(tmp_path / "warm", guest_image)
    warm.take_template(template)
    yield warm
    warm.runtime.close()


def secret_bundle(directory: Path, canaries: Canaries) -> Path:
    made = bundle(directory)
    secret = directory / "secret"
    secret.write_text(canaries.mount)
    value = config(SCRIPT)
    value["process"]["args"] += ["sh", canaries.args]
    value["process"]["env"].append(f"TOKEN={canaries.env}")
    mount = {"destination": "/secret", "type": "bind", "source": str(secret), "options": ["bind", "ro"]}
    value["mounts"].append(mount)
    write_config(made, value)
    return made


def memory_of(shim: int, directory: Path) -> list[Path]:
    """The files that are a VM's memory, in the sight of its shim."""
    seen = Path(f"/proc/{shim}/root{directory}/memory")
    return [seen, *seen.iterdir()]


def test_nobody_on_the_host_finds_a_secret_and_the_guest_has_none_of_the_hosts(
    warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries, runtime = Canaries(), warm.runtime
    monkeypatch.setenv("PASSWORD", canaries.host)
    reader, writer = os.pipe()
    verb, container = runtime.begin_create("one", secret_bundle(tmp_path / "b", canaries), stdin=reader)
    assert verb.wait(120) == 0, container.errors()
    os.close(reader)
    os.write(writer, f"{canaries.stdin}\n".encode())
    os.close(writer)
    runtime.ok("start", "one")
    container.expect("up")
    assert canaries.in_text(container.seen[container.out]) == ["env"]
    said = [warm.bz(*words).out for words in (["audit", "--json"], ["ps"])]
    process = {"args": ["sh", "-c", "exec sleep 1000", canaries.exec], "cwd": "/"}
    process |= {"user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin", f"KEY={canaries.exec}"]}
    (tmp_path / "process").write_text(json.dumps(process))
    with open(tmp_path / "said", "w+b") as file:
        words = runtime.command("exec", "-d", "--process", str(tmp_path / "process"), "one")
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)
    assert canaries.on_command_lines() == []
    assert canaries.in_environments(runtime.helper_pids("one").values()) == []
    assert canaries.in_files(runtime.root) == {}
    assert [canaries.in_text(text) for text in said] == [[]] * len(said)


def test_memory_of_a_vm_and_of_its_template_is_for_no_other_user(warm: Warm, tmp_path: Path) -> None:
    runtime = warm.runtime
    runtime.run("one", bundle(tmp_path / "bundle", "echo up; exec sleep 1000")).expect("up")
    assert warm.begun("one") == "warm"
    kept = memory_of(runtime.shim_pid("one"), runtime.root / "one")
    assert len(kept) > 1
    for path in [*(path for path in kept if path.is_file()), *warm.store.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"]
    for path in (*kept[1:], *(path for path in warm.store.rglob("*") if path.is_file())):
        assert subprocess.run([*nobody, str(path)], capture_output=True, check=False).stdout == b""
