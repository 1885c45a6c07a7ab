"""What the verbs refuse: one clear line, the right exit status, nothing left on disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess

import pytest

from flow.cli import DEADLINE_S, Cli, needs_host

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


_KILLS_THE_SHIM = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"]}]}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"annotations": {"bufferzone.kvm": "require"}},
            "the host without a VM makes no use of KVM, which is required (hint: another VMM)",
        ),
        (
            {"annotations": {"bufferzone.disk_ops_per_s": "9"}},
            "the host without a VM cannot limit what is read from a disk (hint: another VMM)",
        ),
        (
            {"linux": {"sysctl": {"kernel.shm_nothing": "1"}}},
            "linux.sysctl: write sysctl key kernel.shm_nothing: no such file or directory",
        ),
        ({"hooks": _KILLS_THE_SHIM}, "the shim ended before it answered Create"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_creation_that_fails_says_why_and_leaves_nothing(bz, verb, changes, line):
    fails(bz, verb, bz.bundle("pause", **changes), line)


def test_a_limit_that_the_chosen_vmm_cannot_keep_is_refused_and_no_annotation_lifts_it(tmp_path):
    bz = Cli(tmp_path, 'vmm = "qemu"\nnetwork_kib_per_s = 100')
    try:
        hint = "vmm = firecracker, or the network's own limit, such as CNI's bandwidth"
        fails(bz, "create", bz.bundle("pause"), f"QEMU cannot limit a network (hint: {hint})")
        for text in ("0", "101"):
            bundle = bz.bundle("pause", annotations={"bufferzone.network_kib_per_s": text})
            where = "config.json: annotations.bufferzone.network_kib_per_s"
            fails(bz, "create", bundle, f"{where}: this host's limit is 100")
    finally:
        bz.close()


_SHARES = "Firecracker cannot share files of the host with a VM: {0}"
_NO_POD = "Firecracker cannot share a pod's root file systems, and its VMs have one disk"
_NO_SHARES = "(hint: rootfs = block and no volumes, or vmm = qemu)"
_NOT_HOSTS = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]


@pytest.mark.parametrize(
    ("rows", "changes", "line"),
    [
        (
            "",
            {"mounts": [{"destination": "/v", "type": "bind", "source": "{base}/v", "options": ["bind"]}]},
            f"{_SHARES.format('{base}/v')} {_NO_SHARES}",
        ),
        (
            "",
            {"annotations": {"bufferzone.rootfs": "virtiofs"}},
            f"{_SHARES.format('{base}/bundle/rootfs')} {_NO_SHARES}",
        ),
        (
            "",
            {
                "annotations": {"io.kubernetes.cri-o.SandboxID": "pod"},
                "linux": {"cgroupsPath": "/kubepods/crio-one"},
            },
            f"{_NO_POD} (hint: vmm = qemu)",
        ),
        (
            'host_network = "passt"',
            {"linux": {"namespaces": _NOT_HOSTS}},
            "Firecracker has no network for passt (hint: host_network = none, or a network of its own)",
        ),
    ],
)
def test_what_firecracker_cannot_do_is_one_line_each_before_anything_is_made(tmp_path, rows, changes, line):
    bz = Cli(tmp_path, f'vmm = "firecracker"\n{rows}')
    (bz.base / "v").mkdir()
    try:
        here = json.loads(json.dumps(changes).replace("{base}", str(bz.base)))
        fails(bz, "create", bz.bundle("pause", **here), line.replace("{base}", str(bz.base)))
    finally:
        bz.close()


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_shim_that_falls_over_at_once_is_told_with_its_last_words(bz, verb):
    bz.shim = str(bz.base / "shim.py")
    (bz.base / "shim.py").write_text("import sys; sys.exit('Traceback: it fell over')\n")
    line = "the shim ended with status 1 before it listened (hint: Traceback: it fell over)"
    fails(bz, verb, bz.bundle("pause"), line)


def fails(bz, verb, bundle, line):
    pid_file = bz.base / "pid"
    done = bz(verb, "--bundle", str(bundle), "--pid-file", str(pid_file), "one", check=1)
    assert done.stderr == f"bufferzone: {line}\n"
    assert bz.left() == []
    assert not pid_file.exists()


@pytest.mark.parametrize(
    ("changes", "words", "line"),
    [
        ({"ociVersion": "2.0.0"}, (), "config.json: ociVersion: unknown version 2.0.0"),
        ({"root": {"path": "none"}}, (), "config.json: root.path: no such directory"),
        (
            {"annotations": {"bufferzone.x": "1"}},
            (),
            "config.json: annotations.bufferzone.x: unknown annotation",
        ),
        (
            {"annotations": {"bufferzone.memory": "3 MiB"}},
            (),
            "config.json: annotations.bufferzone.memory: memory must",
        ),
        ({}, ("--preserve-fds", "2"), "host descriptors cannot be passed into a virtual machine"),
        ({}, ("--console-socket", "/x"), "--console-socket: not a unix socket: /x"),
        (
            {"process": {"terminal": True}},
            (),
            "cannot allocate a terminal when detached without --console-socket",
        ),
        ({}, ("--bogus",), "flag provided but not defined: --bogus"),
        ({}, ("second-id",), '"create" requires 1 argument(s), got 2'),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_before_anything_is_made(bz, changes, words, line):
    bundle = bz.bundle("pause", **changes)
    done = bz("create", "--bundle", str(bundle), *words, "one", check=1)
    assert done.stderr.startswith(f"bufferzone: {line}")
    assert done.stderr.count("\n") == 1
    assert os.listdir(bz.root) == []


@pytest.mark.parametrize("id", ["a/b", "../x", "..", "x" * 2000, "", "a b", "\u00fc"])
def test_a_bad_id_is_one_short_line(bz, id):
    done = bz("create", "--bundle", str(bz.bundle("pause")), "--", id, check=1)
    assert done.stderr.startswith("bufferzone: invalid container ID format")
    assert len(done.stderr) < 250
    assert os.listdir(bz.root) == []


def test_broken_json_is_told_with_line_and_column(bz):
    bundle = bz.bundle("pause")
    (bundle / "config.json").write_text('{\n "ociVersion": "1.0.0",\n oops}')
    stderr = bz("create", "--bundle", str(bundle), "one", check=1).stderr
    assert stderr.startswith("bufferzone: config.json: line 3 column 2: ")


def test_a_missing_bundle_is_told(bz):
    assert "bundle: no such directory: /nowhere" in bz("create", "-b", "/nowhere", "one", check=1).stderr


def test_a_full_disk_is_one_line_and_nothing_is_left(bz):
    command = bz.command("create", "--bundle", str(bz.bundle("pause")), "one")

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        command, env={}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=no_room
    )
    assert done.returncode == 1
    assert done.stderr == f"bufferzone: cannot write {bz.root}/one/owner: File too large\n"
    assert bz.left() == []


def test_the_log_of_a_failure_is_one_json_object_and_stderr_has_the_line(bz):
    log = bz.base / "log.json"
    command = bz.command("--log", str(log), "--log-format", "json", "kill", "none", "9")
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=DEADLINE_S)
    found = json.loads(log.read_text())
    assert (found["level"], found["msg"]) == ("error", 'container "none" does not exist')
    assert done.stderr == 'bufferzone: container "none" does not exist\n'
    assert done.returncode == 1


def test_success_writes_nothing_into_the_log(bz):
    log = bz.base / "log.json"
    bz("--log", str(log), "list")
    assert log.read_text() == ""


@pytest.mark.parametrize("path", ["none/log", "."])
def test_a_log_that_cannot_be_written_fails_the_verb_before_it_does_anything(bz, path):
    log = str(bz.base / path)
    done = bz("--log", log, "create", "--bundle", str(bz.bundle("pause")), "one", check=1)
    assert done.stderr.startswith(f"bufferzone: cannot write the log '{log}': ")
    assert len(done.stderr.splitlines()) == 1
    assert bz.left() == []


def test_debug_tells_the_steps_with_their_times_where_the_log_goes(bz):
    log = bz.base / "log.json"
    flags = ("--debug", "--log", str(log), "--log-format", "json")
    done = bz(*flags, "run", "--bundle", str(bz.bundle("end", "3")), "one", check=3)
    assert done.stderr == ""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [list(record) for record in records] == [["level", "msg", "time"]] * len(records)
    assert {record["level"] for record in records} == {"debug"}
    said = [record["msg"] for record in records]
    assert said.index("start the shim") < said.index("make the container") < said.index("start its process")
    assert "its process ended with status 3" in said
    assert said[-1] == "run ends with 3"
    assert sorted(record["time"] for record in records) == [record["time"] for record in records]


def test_debug_without_a_log_tells_the_steps_on_stderr_and_the_failure_last(bz):
    done = bz("--debug", "exec", "none", "ls", check=255)
    assert "does not exist" in done.stderr
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    lines = bz("--debug", "exec", "one", "end", "0").stderr.splitlines()
    assert lines, "no step was told"
    assert all(line.startswith('time="') and " level=debug msg=" in line for line in lines)


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
def test_the_help_of_checkpoints_ends_well_which_podman_takes_for_support(bz, verb):
    assert "--image-path" in bz(verb, "--help").stdout


@pytest.mark.parametrize("flag", ["--pre-dump", "--lazy-pages", "--parent-path=x", "--page-server=x"])
def test_a_checkpoint_in_parts_is_refused(bz, flag):
    refused = bz("checkpoint", flag, "one", check=1).stderr
    assert refused == (f"bufferzone: {flag.split('=')[0]} is not supported: a checkpoint is one whole VM\n")


def test_podman_does_not_take_us_for_a_runtime_that_restores_pods(bz):
    assert "flag needs an argument" not in bz("restore", "--lsm-mount-context", check=None).stderr


def test_an_unknown_verb_and_an_unknown_log_format_are_refused(bz):
    assert "no such command: fly" in bz("fly", check=3).stderr
    command = bz.command("--log-format", "xml", "list")
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stderr == "bufferzone: unknown log-format: xml (hint: text or json)\n"


def test_a_file_name_that_is_not_utf8_does_not_hurt(bz):
    command = [os.fsencode(word) for word in bz.command("create", "--bundle")] + [b"/\xff", b"one"]
    done = subprocess.run(command, env={}, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert done.stderr == b"bufferzone: bundle: no such directory: /\\udcff\n"


def test_a_waiter_that_shows_a_containers_root_can_import_nothing_from_it(tmp_path):
    """After pivot_root an import would run the image's files on the host."""
    program = "from bufferzone.client import waiter; waiter._import_no_more(); import colorsys"
    source = os.path.join(os.path.dirname(__file__), "..", "..", "src")
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program], env={"PYTHONPATH": source}, capture_output=True, text=True
    )
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("count", "pid", "refused"),
    [("1", "", True), ("2", "own", True), ("0", "own", False), ("3", "1", False), ("x", "own", False)],
)
@pytest.mark.parametrize("verb", ["create", "run"])
def test_sockets_of_an_activation_are_refused_where_they_are_meant_for_us(bz, verb, count, pid, refused):
    """sd_listen_fds(3): they are for the process that LISTEN_PID names; crun takes them without it, too."""
    own = 'export LISTEN_PID=$$; exec "$@"' if pid == "own" else 'exec "$@"'
    env = {"LISTEN_FDS": count, **({"LISTEN_PID": pid} if pid == "1" else {})}
    words = bz.command(verb, "--bundle", str(bz.bundle("true")), "one")
    with open(bz.base / "said", "w+") as said:
        status = subprocess.run(
            ["sh", "-c", own, "sh", *words], env=env, stdout=said, stderr=said, timeout=DEADLINE_S
        ).returncode
        said.seek(0)
        line = (
            f"bufferzone: host descriptors cannot be passed into a virtual machine: LISTEN_FDS={count} (hint"
        )
        assert said.read().startswith(line if refused else "")
    assert status == refused
    assert bool(bz.left()) == (verb == "create" and not refused)
