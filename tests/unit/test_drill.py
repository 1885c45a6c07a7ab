"""The drill's canaries: a runtime that lets something through is found out, whatever it is; and what strace
says is counted as it is meant. Real VMs: `tests/vm/test_drill.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bufferzone.bench import attacks, canary, drill, meter
from bufferzone.record import asdict

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and device nodes")

#: a runtime that does what `leak` says on the host when it is to run a container
_RUNTIME = """#!{python}
import json, os, signal, sys
words = sys.argv[1:]
if "run" not in words:
    sys.exit(0)
config = json.load(open(words[words.index("--bundle") + 1] + "/config.json"))
facts = json.loads(config["process"]["args"][-1]) if config["process"]["args"][-1].startswith("{{") else {{}}
print("begun", flush=True)
{leak}
"""
ATTACK = attacks.ATTACKS[2]
LEAKS = {
    "": [],
    "print(open(facts['token']).read())": ["the word that only the host has"],
    "open(facts['host'] + '/OWNED-core-pattern', 'w').close()": ["file OWNED-core-pattern"],
    "os.mkfifo(facts['shared'] + '/fifo')": [],
    "os.mknod(facts['shared'] + '/node', 0o20600, os.makedev(1, 3))": ["device node node"],
    "for p in os.listdir('/proc'):\n"
    "    if p.isdigit() and p != str(os.getpid()) and os.path.exists('/proc/' + p):\n"
    "        try:\n"
    "            if facts['victim'].encode() in open('/proc/' + p + '/cmdline', 'rb').read():\n"
    "                os.kill(int(p), signal.SIGKILL)\n"
    "        except OSError:\n"
    "            pass": ["a process of the host was killed"],
    "open(sys.argv[0], 'a').write('#')": ["the runtime"],
}


@pytest.fixture
def made(tmp_path: Path):
    place = tmp_path / "place"
    place.mkdir()
    drills = []

    def make(leak: str) -> drill.Drill:
        runtime = tmp_path / "runtime"
        runtime.write_text(_RUNTIME.format(python=sys.executable, leak=leak))
        runtime.chmod(0o755)
        drills.append(drill.Drill([str(runtime)], str(place)))
        return drills[0]

    yield make
    for each in drills:
        each.close_canary()


@pytest.mark.parametrize("leak", LEAKS)
def test_what_a_runtime_lets_through_is_told(made, tmp_path: Path, leak: str) -> None:
    found = made(leak).run(ATTACK)
    wanted = [str(tmp_path / "runtime") if each == "the runtime" else each for each in LEAKS[leak]]
    assert (found.tried, found.touched, found.contained) == (True, wanted, not wanted)


KILL = next(leak for leak, told in LEAKS.items() if "a process of the host was killed" in told)


def test_what_an_attack_changed_is_put_back(made, tmp_path: Path, monkeypatch) -> None:
    """A later attack finds the host as the one before did, so that each is told what it did itself."""
    setting = tmp_path / "setting"
    setting.write_text("as it was\n")
    monkeypatch.setattr(canary, "_SYSCTLS", (str(setting),))
    changes = f"open({str(setting)!r}, 'w').write('changed')\nos.mknod(facts['shared'] + '/node', 0o20600)\n"
    place = made(changes + KILL)
    told = [str(setting), "device node node", "a process of the host was killed"]
    assert place.run(ATTACK).touched == told
    assert setting.read_text() == "as it was\n"
    assert place.run(ATTACK).touched == told


def test_a_second_container_has_the_link_in_place_of_proc(made) -> None:
    attack = attacks.Attack(name="x", source="x", code="", linked="/shared/fake")
    leak = (
        "place = words[words.index('--bundle') + 1] + '/rootfs/proc'\n"
        "if os.path.islink(place) and config['linux']['sysctl']:\n"
        "    open(facts['host'] + '/OWNED-' + os.readlink(place).replace('/', '-'), 'w').close()"
    )
    assert made(leak).run(attack).touched == ["file OWNED--shared-fake"]


def test_an_attack_that_failed_and_reached_the_host_is_told_as_reaching_it(made) -> None:
    found = drill.Outcome(**{**_fields(made("").run(ATTACK)), "tried": False, "contained": False})
    assert drill.rows([found])[1][1] == "REACHED"


def test_an_attack_that_did_not_run_is_told_as_not_tried(made) -> None:
    found = made("").run(ATTACK)
    assert found.tried
    (row,) = drill.rows([found])[1:]
    assert row[1] == "untouched"
    (row,) = drill.rows([drill.Outcome(**{**_fields(found), "tried": False})])[1:]
    assert row[1] == "not tried"


def _fields(found: drill.Outcome) -> dict[str, object]:
    from bufferzone.record import asdict

    return asdict(found)


@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=attacks.NAMES)
def test_every_attack_is_a_program_that_compiles_and_says_where_it_is_from(attack: attacks.Attack) -> None:
    compile(attacks.PRELUDE + attack.code, attack.name, "exec")
    assert len(attack.source) > 15


def test_a_trace_is_counted_once_for_each_call_and_by_class_and_role(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(
        "10 5.01 accept4(3) = 9\n11 5.02 ppoll(3) = 1\n"  # what each was doing when strace came to it
        '10 5.10 read(3,  <unfinished ...>\n11 5.11 openat(AT_FDCWD, ""..., O_RDONLY|O_CLOEXEC) = 3\n'
        '10 5.12 <... read resumed>""..., 10) = 0\n11 5.13 openat(AT_FDCWD, ""..., O_WRONLY|O_CREAT) = 4\n'
        "11 5.14 clone(child_stack=NULL, flags=CLONE_NEWNS|SIGCHLD) = 12\n11 5.15 clone(0) = 13\n"
        "12 5.16 +++ exited with 0 +++\n12 5.17 --- SIGCHLD {si_signo=SIGCHLD} ---\n"
        "13 5.18 mmap(NULL, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE, 3, 0) = 0x7f\n"
        "11 5.19 ioctl(9, KVM_RUN, 0) = 0\n"
    )
    roles, classes = meter.read_trace(str(tmp_path / "trace"), {10: "shim", 11: "vmm"}, 5.0, 6.0)
    assert roles == {
        "shim": {"read": 1},
        "vmm": {"openat": 2, "clone": 2, "ioctl": 1},
        "begun meanwhile": {"mmap": 1},
    }
    assert classes == {"open to write": 1, "new namespace": 1, "executable memory": 1, "ioctl": 1}


def test_what_was_under_way_when_counting_began_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(
        "10 4.99 accept4(3, <unfinished ...>\n10 5.00 read(3) = 1\n10 6.00 write(3) = 1\n"
    )
    assert meter.read_trace(str(tmp_path / "trace"), {10: "shim"}, 5.0, 6.0) == ({"shim": {"read": 1}}, {})


def test_a_row_of_the_meter_has_what_is_compared() -> None:
    count = meter.Count(
        calls={"read": 30, "write": 10},
        roles={},
        classes={},
        seconds=4.0,
        rounds=8,
        processes=3,
        privileged=1,
    )
    traced = meter.Count(**{**asdict(count), "functions": ["vfs_read", "vfs_write", "ksys_read"]})
    found = {
        "runc": {"idle": count.form(), "files": {"reason": "no"}, "forks": traced.form()},
        "runsc": {"reason": "not installed"},
    }
    rows = meter.rows(found)
    assert rows[1] == ["runc", "idle", "2", "10.0", "8", "5.0", "-", "1 of 3", "none"]
    assert rows[2][-1] == "no"
    assert rows[3][6] == "3"
    assert rows[4][-1] == "not installed"
    assert {len(row) for row in rows} == {len(rows[0])}
