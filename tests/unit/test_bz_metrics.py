"""`bz metrics` tells what state files say, in the form that Prometheus reads."""

import os
import subprocess
from pathlib import Path

from bufferzone import state
from bufferzone.cli.bz.metrics import text_of

PROGRAM = Path(__file__).parents[2] / "bin" / "bz"


def container(root, id, status, **annotations):
    directory = state.create(str(root), id)
    notes = {f"bufferzone.{key.replace('_', '-')}": value for key, value in annotations.items()}
    state.write_state(
        directory, id=id, status=status, pid=os.getpid(), bundle="/b", rootfs="/r", created="now", owner="me",
        annotations=notes,
    )  # fmt: skip
    state.write_owner(directory, os.getpid())


def metrics(root):
    words = [str(PROGRAM), "--root", str(root), "metrics"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines), done.stdout


def test_containers_and_sandboxes_are_counted(tmp_path):
    root = tmp_path / "root"
    for id in ("one", "two"):
        container(root, id, "running", start="warm", accelerator="tcg", egress_denied="3")
    container(root, "three", "stopped", start="warm", accelerator="tcg", failure="qemu: gone")
    found, text = metrics(root)
    assert found[f'bufferzone_containers{{root="{root}",status="running"}}'] == "2"
    assert found[f'bufferzone_containers{{root="{root}",status="stopped"}}'] == "1"
    # one process is the shim of all three
    assert found['bufferzone_sandboxes{start="warm",accelerator="tcg"}'] == "1"
    assert found["bufferzone_failed_containers"] == "1"
    assert found["bufferzone_egress_denied_packets"] == "6"
    assert int(found['bufferzone_memory_bytes{process="shim"}']) > 1 << 20
    assert text.count("# TYPE ") == text.count("# HELP ") == 5


def test_where_nothing_is_everything_is_zero(tmp_path):
    found, _ = metrics(tmp_path / "none")
    assert set(found.values()) == {"0"}


def test_what_a_label_says_is_escaped():
    text = text_of({("bufferzone_sandboxes", (("start", 'a"b\\c\nd'),)): 1})
    assert 'bufferzone_sandboxes{start="a\\"b\\\\c\\nd"} 1\n' in text
