"""`bz metrics` tells what state files say, in the form that Prometheus reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

from bufferzone import counters, state
from bufferzone.cli.bz.metrics import text_of, text_of_counted

COUNTED = re.compile("bufferzone_(starts|boot|failures)_")
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
    return parsed(done.stdout), done.stdout


def parsed(text):
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


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
    assert text.count("# TYPE ") == text.count("# HELP ") == 8


def test_where_nothing_is_everything_is_zero(tmp_path):
    found, _ = metrics(tmp_path / "none")
    assert {value for name, value in found.items() if not COUNTED.match(name)} == {"0"}


def test_starts_are_a_histogram_by_phase_and_failures_have_their_cause(tmp_path):
    directory = str(tmp_path)
    for kind, marks in (("warm", [("prepare", 3.0), ("wake", 203.0)]), ("warm", [("prepare", 30.0)])):
        counters.count_start(directory, kind, marks)
    counters.count_failure(directory, "vmm-died")
    found = parsed(text_of_counted(counters.read(directory)))
    assert found['bufferzone_starts_total{start="warm"}'] == "2"
    prepare = 'bufferzone_boot_seconds_bucket{start="warm",phase="prepare",le='
    assert [found[f'{prepare}"{bound}"}}'] for bound in ("0.005", "0.025", "0.05", "+Inf")] == list("1122")
    assert found['bufferzone_boot_seconds_sum{start="warm",phase="all"}'] == "0.2330"
    assert found['bufferzone_boot_seconds_count{start="warm",phase="wake"}'] == "1"
    assert found['bufferzone_failures_total{cause="vmm-died"}'] == "1"


def test_processes_that_count_at_once_lose_nothing_and_a_damaged_line_is_left_out(tmp_path):
    count = "counters.count_start(sys.argv[1], 'cold', [('prepare', 1.0)])"
    script = f"import sys\nfrom bufferzone import counters\nfor _ in range(50): {count}"
    words = [sys.executable, "-c", script, str(tmp_path)]
    env = {"PYTHONPATH": str(PROGRAM.parents[1] / "src")}
    running = [subprocess.Popen(words, env=env) for _ in range(4)]
    assert [process.wait(timeout=120) for process in running] == [0] * 4
    path = tmp_path / counters.NAME
    path.write_text(path.read_text() + "start\tcold\thalf\t1\t2.0\t1\nfailure\tx\nnonsense\n")
    assert {row[:3] for row in counters.starts(counters.read(str(tmp_path)))} == {
        ("cold", "prepare", 200),
        ("cold", "all", 200),
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_label_says_is_escaped():
    text = text_of({("bufferzone_sandboxes", (("start", 'a"b\\c\nd'),)): 1})
    assert 'bufferzone_sandboxes{start="a\\"b\\\\c\\nd"} 1\n' in text
