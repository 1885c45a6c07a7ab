"""The verbs that tell: list, ps, events, features, spec, update, version, help."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from bufferzone import oci, state
from bufferzone.cli import durations
from bufferzone.cli.oci import VERBS
from bufferzone.errors import UsageError
from flow.cli import DEADLINE_S, ROOT, Cli, needs_host, vm_cgroups
from vm.verbs import await_true

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


@pytest.fixture
def running(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    # until then it is the shell that becomes it
    await_true(lambda: bz("ps", "one").stdout.rstrip().endswith(" sleep 1000"), "its program")
    return bz


def test_list_shows_the_truth_about_every_container(running):
    running.create("two", running.bundle("pause"))
    assert running("list", "-q").stdout == "one\ntwo\n"
    os.kill(state.owner_pid(str(running.root / "two")), signal.SIGKILL)
    found = {entry["id"]: entry["status"] for entry in json.loads(running("list", "-f", "json").stdout)}
    assert found == {"one": "running", "two": "stopped"}
    header, first, _ = running("list").stdout.splitlines()
    assert header.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert first.split()[:1] == ["one"]


def test_list_as_json_is_compact_and_in_runcs_order(running):
    line = running("list", "--format", "json").stdout
    (found,) = json.loads(line)
    before = ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created"]
    assert list(found) == [*before, *(["annotations"] if "annotations" in found else []), "owner"]
    assert found.get("annotations") != {}
    assert line == json.dumps([found], separators=(",", ":")) + "\n"


def test_list_of_nothing_is_a_header_or_an_empty_array(bz):
    assert bz("list").stdout.split()[0] == "ID"
    assert bz("list", "--format=json").stdout == "[]\n"
    assert "invalid format: xml" in bz("list", "-f", "xml", check=1).stderr


#: as `ps -ef` has it, which is what runc runs
_FULL = "UID PID PPID C STIME TTY TIME CMD"


def test_ps_shows_the_guests_table_and_as_json_the_hosts_pids(running):
    table = running("ps", "one", "-ef").stdout.splitlines()
    assert table[0].split() == _FULL.split()
    assert [row.split()[0] for row in table[1:]] == ["root"]
    assert table[1].endswith("sleep 1000")
    assert json.loads(running("ps", "--format", "json", "one").stdout) == [running.state("one")["pid"]]


def test_ps_of_a_stopped_container_is_a_header(running):
    running("kill", "one", "KILL")
    await_true(lambda: running.state("one")["status"] == "stopped", "stopped")
    assert running("ps", "one").stdout.split() == _FULL.split()
    assert running("ps", "--format", "json", "one").stdout == "null\n"  # as runc 1.1


@pytest.mark.parametrize(
    ("words", "header"),
    [
        ((), _FULL),
        (("-e", "-f", "-x"), _FULL),
        (("-e", "-x"), "PID TTY STAT TIME COMMAND"),
        (("ax",), "PID TTY STAT TIME COMMAND"),
        (("-o", "pid,args"), "PID CMD"),
        (("aux", "-opid"), "PID"),
        (("-eo", "ppid,pid,time"), "PPID PID TIME"),
    ],
)
def test_ps_takes_the_options_of_ps(running, words, header):
    lines = running("ps", "one", *words).stdout.splitlines()
    assert lines[0].startswith("    PID") == (header.split()[0] == "PID")
    names, row = map(str.split, lines)
    assert names == header.split()
    found = dict(zip(names, row, strict=False))
    assert found.get("STAT", "S") == "S"
    assert found.get("C", "0").isdigit()
    assert found.get("UID", "root") == "root"
    assert found.get("COMMAND", found.get("CMD", "sleep")) == "sleep"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-o", "rss"), "ps: the guest does not tell: rss"),
        (("--ppid", "1"), "ps has no such option here: --ppid"),
        (("-o",), "flag needs an argument: -o"),
        (("-",), "ps has no such option here: -"),
    ],
)
def test_ps_options_that_cannot_be_met_are_refused_by_name(running, words, text):
    assert text in running("ps", "one", *words, check=1).stderr


def test_events_once_is_one_line_of_runcs_json(running):
    line = running("events", "--stats", "one").stdout
    found = json.loads(line)
    assert line == json.dumps(found, separators=(",", ":")) + "\n"
    assert (found["type"], found["id"], line.count("\n")) == ("stats", "one", 1)
    assert found["data"]["cpu"]["usage"]["total"] > 0


def test_events_of_a_stopped_container_are_refused_in_runcs_words(running):
    running("kill", "one", "KILL")
    for words in (["events"], ["events", "--stats"]):
        said = running(*words, "one", check=1).stderr
        assert said == "bufferzone: container with id one is not running\n"


def test_events_end_with_the_container(running):
    with subprocess.Popen(
        running.command("events", "one"), env={}, stdout=subprocess.PIPE, text=True
    ) as events:
        assert json.loads(events.stdout.readline())["type"] == "stats"
        running("kill", "one", "KILL")
        assert events.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("2us", 2e-6)]
)
def test_durations_are_gos(text, seconds):
    assert durations.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "0s", "-1s", "s", "1x", "1..5s", "5 s", "1e400s"])
def test_other_durations_are_refused(text):
    with pytest.raises(UsageError):
        durations.seconds(text)


def descendants(bz):
    """What the agent's cgroup of the container is limited to."""
    pid = state.owner_pid(str(bz.root / "one"))
    path = f"{vm_cgroups(pid)[0]}/containers/one/cgroup.max.descendants"
    with open(path) as file:
        return file.read().strip()


def test_update_takes_resources_from_stdin_or_a_file(running):
    running("update", "--resources=-", "one", input='{"unified": {"cgroup.max.descendants": "7"}}')
    assert descendants(running) == "7"
    path = running.base / "resources"
    path.write_text('{"unified": {"cgroup.max.descendants": "8"}}')
    running("update", "-r", str(path), "one")
    assert descendants(running) == "8"


def test_an_update_that_the_guests_kernel_refuses_changes_nothing(running):
    changes = '{"unified": {"cgroup.max.descendants": "9", "cgroup.nothing": "1"}}'
    refused = running("update", "--resources=-", "one", input=changes, check=1).stderr
    assert "cgroup.nothing" in refused
    assert descendants(running) == "max"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memory", "lots"), "invalid size: lots"),
        ((), "update needs --resources or a limit"),
        (("--blkio-weight", "-5"), "resources.blockIO.weight: expected 0 to 65535, got -5"),
        (("-r", "/nowhere"), "/nowhere: no such file"),
    ],
)
def test_update_refuses_what_makes_no_sense(running, words, message):
    assert message in running("update", *words, "one", check=1).stderr


def test_spec_writes_a_config_that_loads_and_never_replaces_one(bz):
    directory = bz.base / "new"
    (directory / "rootfs").mkdir(parents=True)
    bz("spec", "--bundle", str(directory))
    assert oci.load(str(directory)).process["args"] == ["sh"]
    (directory / "config.json").write_text("mine")
    assert "exists (hint: remove it first)" in bz("spec", "-b", str(directory), check=1).stderr
    assert (directory / "config.json").read_text() == "mine"


def test_features_has_what_docker_and_crio_read(bz):
    found = json.loads(bz("features").stdout)
    assert (found["ociVersionMin"], found["ociVersionMax"]) == ("1.0.0", state.OCI_VERSION)
    assert {"bind", "rbind", "ro", "rro", "rprivate", "tmpcopyup"} <= set(found["mountOptions"])
    assert "CAP_SYS_ADMIN" in found["linux"]["capabilities"]
    assert found["linux"]["seccomp"]["enabled"] is True
    assert found["annotations"]["bufferzone.kvm"] in ("warn", "allow", "require")


def test_features_tells_what_each_vmm_can_do(bz):
    told = json.loads(bz("features").stdout)["annotations"]
    can = {name: set(told[f"bufferzone.vmm.{name}"].split(",")) for name in ("qemu", "firecracker", "host")}
    assert {name for name, words in can.items() if "virtiofs" in words} == {"qemu"}
    assert {name for name, words in can.items() if "wall" in words} == {"qemu", "firecracker"}
    assert {name for name, words in can.items() if "nic_rate" in words} == {"firecracker"}
    assert {name for name, words in can.items() if "slot_bytes" in words} == set(can)
    assert told["bufferzone.vmm"] == "host"


def test_version_is_in_runcs_form(bz):
    lines = bz("--version").stdout.splitlines()
    assert lines[0].startswith("bufferzone version ")
    assert lines[1] == f"spec: {state.OCI_VERSION}"


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"checkpoint", "restore"}))
def test_every_verb_has_help_with_its_summary(bz, verb):
    text = bz(verb, "--help").stdout
    assert text.startswith(f"NAME:\n   bufferzone {verb} - {VERBS[verb][1]}\n")
    assert bz("help", verb).stdout == text


def test_the_programs_help_lists_every_verb(bz):
    text = bz("--help").stdout
    assert [verb for verb in VERBS if f"\n   {verb} " not in text] == []


def test_bz_shows_what_runs_each_container(running):
    command = [str(ROOT / "bin" / "bz"), "--root", str(running.root), "ps"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    header, row = done.stdout.splitlines()
    assert header.startswith("ID    STATUS    VMM")
    assert row.split()[:3] == ["one", "running", "host"]
    assert " none " in row


def test_bz_tells_what_it_can_do_and_refuses_the_rest(bz):
    program = str(ROOT / "bin" / "bz")
    text = subprocess.run([program, "--help"], env={}, capture_output=True, text=True, check=True).stdout
    assert "   setup " in text
    done = subprocess.run([program, "fly"], env={}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "bz: no such command: fly (hint: bz --help lists them)\n")


@pytest.mark.parametrize(
    "words", [("state",), ("kill", "KILL"), ("ps",), ("pause",), ("list",), ("delete", "--force")]
)
def test_every_verb_tells_its_steps_where_the_log_goes(running, words):
    verb, *flags = words
    log = running.base / "log"
    id = [] if verb == "list" else ["one"]
    words = (verb, *flags, *id) if verb == "delete" else (verb, *id, *flags)
    running("--debug", "--log", str(log), *words)
    lines = log.read_text().splitlines()
    assert all(line.startswith('time="') and " level=debug msg=" in line for line in lines)
    assert f'msg="{verb} begins' in lines[0]
    assert lines[-1].endswith(f'msg="{verb} ends with 0"')


def test_debug_reaches_the_shim_which_tells_its_steps_and_nothing_without_it(bz):
    said = {}
    for id, flags in (("one", ()), ("two", ("--debug", "--log", str(bz.base / "log")))):
        bz(*flags, "run", "--keep", "--bundle", str(bz.bundle("end", "0")), id)
        said[id] = (bz.root / id / "shim.log").read_text().splitlines()
    assert not [line for line in said["one"] if "level=debug" in line]
    told = [line.split(" ", 2) for line in said["two"] if "level=debug" in line]
    assert [stamp for stamp, *_ in told] == sorted(stamp for stamp, *_ in told)
    texts = [text for _, _, text in told]
    assert "begins: boot the guest" in texts
    assert any(text.startswith("Create: asked by pid ") for text in texts)
