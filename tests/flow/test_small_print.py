"""The small print of the verbs' contract: what runc answers, seen beside runc 1.1."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bufferzone.cli.oci.spec import default_spec
from bufferzone.client import stdio_owner
from flow.cli import DEADLINE_S, Cli, needs_host, read
from vm.verbs import await_true

pytestmark = needs_host

_SPEC = default_spec(rootless=False)


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


def started(bz: Cli, *args: str, **changes) -> None:
    bz.create("one", bz.bundle(*args, **changes))
    bz("start", "one")


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A container that may write its cgroups and has made two, `a` and `a/b`. Its tests only look."""
    bz = Cli(tmp_path_factory.mktemp("divided"))
    mounts = copy.deepcopy(_SPEC["mounts"])
    cgroup = next(mount for mount in mounts if mount["type"].startswith("cgroup"))
    cgroup["options"] = ["rw" if option == "ro" else option for option in cgroup["options"]]
    started(bz, "pause", mounts=mounts)
    bz("exec", "one", "sh", "-c", "busybox mkdir -p /sys/fs/cgroup/a/b")
    yield bz
    bz.close()


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ((), "/"),
        (("/",), "/"),
        (("",), "/"),
        (("./",), "/"),
        (("cpu,memory:/", "name=systemd:/"), "/"),
        (("a",), "/a"),
        (("/a/b",), "/a/b"),
        (("a/../a/b/",), "/a/b"),
        ((":/a",), "/a"),
    ],
)
def test_an_exec_joins_the_cgroup_that_it_asks_for(divided, words, place):
    flags = [part for word in words for part in ("--cgroup", word)]
    said = divided("exec", *flags, "one", "cat", "/proc/self/cgroup").stdout
    assert said.splitlines()[-1] == f"0::{place}"  # those of v1 are this host's


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("..",), "--cgroup: .. is not a sub cgroup path"),
        (("/../..",), "--cgroup: /../.. is not a sub cgroup path"),
        (("a/../../x",), "--cgroup: a/../../x is not a sub cgroup path"),
        (("nonsense:/",), "--cgroup: unknown controller nonsense"),
        (("cpu,nonsense:/",), "--cgroup: unknown controller nonsense"),
        (
            ("cpu:/a",),
            "--cgroup: the guest has one hierarchy for all controllers: cpu:/a (hint: --cgroup /a)",
        ),
        (("none",), "error adding pid to cgroups: /none/cgroup.procs: no such file or directory"),
    ],
)
def test_an_exec_in_a_cgroup_that_is_not_there_or_not_below_is_refused(divided, words, message):
    flags = [part for word in words for part in ("--cgroup", word)]
    done = divided("exec", *flags, "one", "true", check=255)
    assert done.stderr == f"bufferzone: {message}\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a:b:c",), "invalid --cgroup argument: a:b:c"),
        (("/", "cpu:/"), "invalid --cgroup argument: / (missing <controller>: prefix)"),
    ],
)
def test_a_cgroup_argument_of_the_wrong_form_is_refused(bz, words, message):
    flags = [part for word in words for part in ("--cgroup", word)]
    assert message in bz("exec", *flags, "one", "true", check=255).stderr


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_start_works_below_a_limit_of_files_that_what_is_open_exceeds(bz, verb):
    """posix_spawn(3) refuses to close a descriptor that RLIMIT_NOFILE does not allow."""
    bundle = bz.bundle("echo", "up", process={"rlimits": []})
    high = os.open("/dev/null", os.O_RDONLY)
    os.dup2(high, 700, inheritable=True)
    os.close(high)
    command = [sys.executable, "-ISc", _LOWER, "600", *bz.command(verb, "--bundle", str(bundle), "one")]
    with open(bz.base / "err", "w+") as errors:
        done = subprocess.run(
            command,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=(700,),
            check=False,
        )
        os.close(700)
        errors.seek(0)
        assert (done.returncode, errors.read()) == (0, "up\n" if verb == "run" else "")


#: LIMIT WORD...: runs the words with a limit of open files
_LOWER = """
import os, resource, sys
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("mappings", "owner"),
    [
        ({}, (77, 88)),
        (
            {
                "uidMappings": [{"containerID": 0, "hostID": 5000, "size": 100}],
                "gidMappings": [{"containerID": 80, "hostID": 6000, "size": 100}],
            },
            (5077, 6008),
        ),
    ],
)
def test_a_file_that_is_a_detached_process_stdout_belongs_to_its_user(tmp_path, mappings, owner):
    with open(tmp_path / "out", "w") as out, open(os.devnull) as null:
        stdio_owner.give((null.fileno(), out.fileno()), {"uid": 77, "gid": 88}, lambda: mappings)
        found = os.fstat(out.fileno())
        assert (found.st_uid, found.st_gid) == owner
        assert os.stat(os.devnull).st_uid == 0


def test_files_of_detached_containers_and_execs_are_their_users_and_those_of_attached_ones_are_not(bz):
    out = {name: str(bz.base / name) for name in ("container", "exec", "attached")}
    user = {"uid": 77, "gid": 88}
    bz.create("one", bz.bundle("pause", process={"user": user}), out=out["container"])
    bz("start", "one")
    with open(out["exec"], "w") as file:
        command = bz.command("exec", "--detach", "--user", "55:66", "one", "true")
        subprocess.run(command, env={}, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)
    with open(out["attached"], "w") as file:
        command = bz.command("exec", "--user", "55:66", "one", "true")
        subprocess.run(command, env={}, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)
    found = {name: os.stat(path) for name, path in out.items()}
    owners = {name: (facts.st_uid, facts.st_gid) for name, facts in found.items()}
    assert owners == {"container": (77, 88), "exec": (55, 66), "attached": (0, 0)}


@pytest.fixture
def freezer(bz):
    """A cgroup of the host, and what freezes and thaws it, on either version."""
    name = f"bufferzone-test-frozen-{os.getpid()}"
    v1 = Path("/sys/fs/cgroup/freezer")
    place = v1 / name if v1.is_dir() else Path("/sys/fs/cgroup") / name

    def turn(frozen: bool) -> None:
        if v1.is_dir():
            (place / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        else:
            (place / "cgroup.freeze").write_text("1" if frozen else "0")

    yield name, turn
    if place.is_dir():
        turn(False)
        os.rmdir(place)


def test_a_container_whose_cgroup_was_frozen_is_not_started_and_can_be_later(bz, freezer):
    name, turn = freezer
    bz.create("one", bz.bundle("pause", linux={"cgroupsPath": f"/{name}"}))
    turn(True)
    told = bz("start", "one", check=1).stderr
    assert told.startswith("bufferzone: the shim does not answer, its cgroup is frozen: /sys/fs/cgroup/")
    assert told.endswith(f"/{name} (hint: thaw it, or those above it)\n")
    assert "its cgroup is frozen" in bz("kill", "one", "TERM", check=1).stderr
    turn(False)
    bz("delete", "--force", "one")


def test_a_container_whose_cgroup_was_frozen_is_deleted_by_force(bz, freezer):
    name, turn = freezer
    bz.create("one", bz.bundle("pause", linux={"cgroupsPath": f"/{name}"}))
    bz("start", "one")
    turn(True)
    bz("delete", "--force", "one")
    assert bz.left() == []


def test_a_created_container_can_be_paused_and_is_created_again_when_it_is_resumed(bz):
    bz.create("one", bz.bundle("pause"))
    bz("pause", "one")
    assert bz.state("one")["status"] == "paused"
    assert "cannot start a container in the paused state" in bz("start", "one", check=1).stderr
    assert "cannot exec" in bz("exec", "one", "true", check=255).stderr
    refused = bz("checkpoint", "--image-path", str(bz.base / "saved"), "one", check=1).stderr
    assert "it was paused before it was started" in refused
    assert bz("delete", "one", check=1).stderr
    bz("resume", "one")
    assert bz.state("one")["status"] == "created"
    bz("start", "one")
    assert bz.state("one")["status"] == "running"
    bz("pause", "one")
    bz("resume", "one")
    assert bz.state("one")["status"] == "running"


def test_a_container_that_was_paused_before_its_start_is_deleted_by_force(bz):
    bz.create("one", bz.bundle("pause"))
    bz("pause", "one")
    bz("delete", "--force", "one")
    assert bz.left() == []


def test_groups_of_an_exec_are_added_to_the_containers(bz):
    started(bz, "pause", process={"user": {"uid": 0, "gid": 0, "additionalGids": [3]}})
    assert bz("exec", "-g", "7", "-g", "9", "one", "id", "-G").stdout == "0 3 7 9\n"


def test_an_update_of_kernel_memory_alone_changes_nothing_and_is_no_error(bz):
    started(bz, "pause")
    bz("update", "--kernel-memory", "100M", "one")


@pytest.mark.parametrize("flag", ["--l3-cache-schema", "--mem-bw-schema"])
def test_an_update_of_what_a_vm_does_not_have_is_refused(bz, flag):
    told = bz("update", flag, "MB:0=50", "one", check=1).stderr
    assert told == "bufferzone: linux.intelRdt cannot be changed: the guest has no resctrl\n"


def test_a_remount_needs_no_source_and_changes_what_is_there(bz):
    mounts = [
        *_SPEC["mounts"],
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/tmp", "type": "bind", "options": ["bind", "remount", "ro"]},
    ]
    bundle = bz.bundle("touch", "/tmp/x", mounts=mounts, root={"readonly": False})
    assert "Read-only file system" in bz("run", "--bundle", str(bundle), "one", check=1).stderr


def test_a_file_on_a_directory_is_refused_in_words(bz):
    (bz.base / "file").touch()
    mount = {
        "destination": "/etc",
        "type": "bind",
        "source": str(bz.base / "file"),
        "options": ["bind"],
    }
    bundle = bz.bundle("true", mounts=[*_SPEC["mounts"], mount])
    told = bz("run", "--bundle", str(bundle), "one", check=1).stderr
    assert told.endswith(' to rootfs at "/etc": a file cannot be mounted on a directory\n')


@pytest.fixture
def shared(bz):
    """What a config.json says whose cgroup another container is in; all leave it at the end."""
    name = f"bufferzone-test-shared-{os.getpid()}"
    place = {"linux": {"cgroupsPath": f"/{name}"}}
    bz.create("one", bz.bundle("pause", **place))
    yield place
    for container in bz.root.iterdir():
        if container.name in ("one", "two", "three"):
            bz("delete", "--force", container.name)
    assert list(Path("/sys/fs/cgroup").glob(f"*/{name}")) == []
    assert not Path(f"/sys/fs/cgroup/{name}").exists()


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_start_in_a_cgroup_of_others_is_warned_of_and_goes_on(bz, shared, verb):
    flags = ["--detach"] if verb == "run" else []
    (line,) = bz.create("two", bz.bundle("pause", name="two", **shared), *flags, verb=verb).splitlines()
    warning = "level=warning msg=\"container's cgroup is not empty: "
    assert warning in line
    log = bz.base / "log"
    words = ["--log", str(log), verb, *flags, "--bundle", str(bz.bundle("pause", name="three", **shared))]
    subprocess.run(bz.command(*words, "three"), env={}, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert warning in log.read_text()


def test_a_cgroup_of_two_containers_goes_with_the_last(bz, shared):
    bz.create("two", bz.bundle("pause", name="two", **shared))
    bz("delete", "--force", "one")


def test_a_foreground_run_in_a_cgroup_of_others_is_warned_of(bz, shared):
    done = bz("run", "--bundle", str(bz.bundle("echo", "said", name="two", **shared)), "two")
    assert done.stdout == "said\n"
    assert "container's cgroup is not empty: " in done.stderr


def test_a_start_in_a_cgroup_of_its_own_says_nothing(bz):
    bundle = bz.bundle("true", linux={"cgroupsPath": f"/bufferzone-test-own-{os.getpid()}"})
    assert bz("run", "--bundle", str(bundle), "one").stderr == ""


def detached(bz, tmp_path, script):
    """A detached exec of a shell, whose stdout goes to the pipe that is returned: (its conmon, the pipe)."""
    reader, writer = os.pipe()
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = ("exec", "--detach", "--pid-file", str(tmp_path / "pid"), "one", "sh", "-c", script)
    conmon = bz.conmon(*words, outputs=writer, **quiet)
    os.close(writer)
    return conmon, reader


def status_of(conmon):
    assert conmon.wait(DEADLINE_S) == 0
    return conmon.stdout.read().split()[-1]


#: waits for /tmp/go, then writes a line and goes on without its stdout
LATER = "(until [ -e /tmp/go ]; do sleep 0.05; done; echo late; exec >/dev/null 2>&1; sleep 1000) &"


def test_a_detached_exec_has_ended_when_its_descendants_still_write_and_its_reader_gets_that(bz, tmp_path):
    started(bz, "pause")
    conmon, reader = detached(bz, tmp_path, f"{LATER} echo now; exit 4")
    with conmon, open(reader, "rb", 0) as output:
        assert read(reader) == b"now\n"
        assert status_of(conmon) == "4"  # the exec has ended, and its status was told
        (tmp_path / "bundle" / "rootfs" / "tmp" / "go").touch()
        assert output.readall() == b"late\n"


def test_the_end_of_a_detached_exec_is_told_once_its_own_output_is_delivered(bz, tmp_path):
    started(bz, "pause")
    size = 3 << 20  # more than all pipes on the way hold
    conmon, reader = detached(bz, tmp_path, f"{LATER} head -c {size} /dev/zero; exit 4")
    with conmon, open(reader, "rb", 0) as output:
        left = size
        while left > 1 << 16:
            assert conmon.poll() is None
            left -= len(output.read(1 << 12))
        while left:
            left -= len(output.read(left))
        assert status_of(conmon) == "4"


def test_what_a_detached_exec_left_behind_gets_a_broken_pipe_when_nobody_reads_it(bz, tmp_path):
    started(bz, "pause", root={"readonly": False})
    wait = "until [ -e /tmp/go ]; do sleep 0.05; done"
    script = f"({wait}; while echo late; do sleep 0.05; done; touch /tmp/told)"
    conmon, reader = detached(bz, tmp_path, f"trap '' PIPE; {script} & exit 4")
    with conmon:
        assert status_of(conmon) == "4"
        os.close(reader)
    rootfs = tmp_path / "bundle" / "rootfs" / "tmp"
    (rootfs / "go").touch()
    await_true((rootfs / "told").exists, "the write that fails")


def test_what_a_detached_exec_left_behind_does_not_keep_the_container(bz, tmp_path):
    started(bz, "pause")
    with open(tmp_path / "out", "w") as out:
        command = bz.command("exec", "--detach", "one", "sh", "-c", "sleep 1000 & exit 0")
        subprocess.run(command, env={}, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True)
    bz("kill", "one", "KILL")
    bz("delete", "--force", "one")
    assert bz.left() == []


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_hook_without_an_environment_has_that_of_the_verb_that_made_the_container(bz, tmp_path, verb):
    """As with runc, crun and runsc; the shim, which runs it, has a short one of its own."""
    tell = [{"path": "/usr/bin/env", "args": ["env", "sh", "-c", f"echo $0 $THEIRS $PATH >>{tmp_path}/log"]}]
    hooks = dict.fromkeys(("prestart", "createRuntime", "createContainer", "poststop"), tell)
    env = {"THEIRS": "a caller's", "PATH": "/usr/bin:/bin:/x"}
    bz.create("one", bz.bundle("true", hooks=hooks), verb=verb, env=env)
    if verb == "create":
        bz("delete", "one")
    assert (tmp_path / "log").read_text().splitlines() == ["sh a caller's /usr/bin:/bin:/x"] * 4


@pytest.mark.parametrize("verb", ["create", "run"])
def test_the_pid_that_a_hook_is_told_leads_to_the_network_namespace_of_the_container(bz, tmp_path, verb):
    """BuildKit's hook, like Docker's, makes interfaces there: in the host's they were the host's."""
    find_pid = "pid=$(grep -o 'pid\" *: *[0-9]*' | grep -o '[0-9]*$')"
    script = f"{find_pid}; readlink /proc/$pid/ns/net >>{tmp_path}/log"
    tell = [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]
    hooks = dict.fromkeys(("prestart", "createRuntime", "createContainer"), tell)
    bz.create("one", bz.bundle("true", hooks=hooks), verb=verb)
    namespaces = (tmp_path / "log").read_text().split()
    assert len(namespaces) == 3
    assert len(set(namespaces)) == 1
    assert namespaces[0] != os.readlink("/proc/self/ns/net")
    if verb == "create":
        bz("delete", "one")


def test_a_run_that_leaves_a_pid_file_is_in_the_network_namespace_of_the_container(bz, tmp_path):
    file = tmp_path / "pid"
    running = bz.start("run", "--bundle", str(bz.bundle("pause")), "--pid-file", str(file), "one")
    await_true(file.exists, "the pid file")
    assert int(file.read_text()) == running.pid
    assert os.readlink(f"/proc/{running.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    await_true(lambda: bz.state("one")["status"] == "running", "running")
    bz("kill", "one", "KILL")
    running.communicate()
    assert running.returncode == 137


def test_what_a_regular_expression_matches_is_killed_and_deleted(bz):
    """crun's --regex: it matches anywhere, and of those that fail the rest is not held up."""
    bundle = bz.bundle("pause")
    for id in ("test-one", "test-two", "other"):
        bz.create(id, bundle)
    bz("start", "test-one")
    bz("kill", "--regex", "st-o", "KILL")
    await_true(lambda: bz.state("test-one")["status"] == "stopped", "stopped")
    bz("start", "test-two")
    told = bz("delete", "--regex", "^test-", check=1).stderr
    assert told == "bufferzone: cannot delete container test-two that is not stopped: running\n"
    assert bz("list", "-q").stdout == "other\ntest-two\n"
    bz("delete", "-f", "-r", "test-*")
    assert bz("list", "-q").stdout == "other\n"
    bz("delete", "--regex", "nothing")
    assert bz("delete", "--regex", "te(", check=1).stderr == (
        "bufferzone: --regex: missing ), unterminated subpattern at position 2: te(\n"
    )
    bz("delete", "-f", "other")


def test_the_configuration_may_be_named_but_is_the_bundles_own(bz, tmp_path):
    """crun's --config, which its callers give as config.json of the bundle that they are in."""
    bundle = bz.bundle("true")
    relative = os.path.relpath(bundle / "config.json", "/")  # where `bz` runs
    bz("run", "--bundle", str(bundle), "--config", relative, "one")
    bz("run", "--bundle", str(bundle), "-f", str(bundle / "config.json"), "one")
    (tmp_path / "x.json").write_text((bundle / "config.json").read_text())
    done = bz("run", "--bundle", str(bundle), "--config", str(tmp_path / "x.json"), "one", check=1)
    assert done.stderr == (
        f"bufferzone: --config: not the config.json of the bundle, which alone is read: {tmp_path}/x.json\n"
    )
    assert bz.left() == []


def test_hooks_run_in_order_each_where_runc_has_it(bz, tmp_path):
    """Seen with runc 1.1: createContainer begins in the root file system, the host's others in the bundle."""
    log = tmp_path / "log"
    stages = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks = {
        stage: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {stage} $(pwd) >>{log}"]}] for stage in stages
    }
    hooks["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "pwd >/told; cat >>/told"]}]
    bundle = bz.bundle("true", hooks=hooks, root={"path": "rootfs", "readonly": False})
    bz("run", "--bundle", str(bundle), "one")
    places = [f"{bundle}/rootfs" if stage == "createContainer" else str(bundle) for stage in stages]
    assert log.read_text().splitlines() == list(map(" ".join, zip(stages, places, strict=True)))
    place, state = (bundle / "rootfs/told").read_text().splitlines()
    assert (place, json.loads(state)["bundle"]) == ("/", str(bundle))


def test_a_capability_that_no_kernel_has_is_a_warning(bz):
    """config.md "Linux Process": it "MUST be logged as a warning", and the container starts."""
    sets = {"bounding": ["CAP_KILL", "CAP_X"], "ambient": ["CAP_\n"]}
    warning = 'level=warning msg="ignoring unknown or unavailable capabilities: [CAP_\\\\n CAP_X]"\n'
    process = {"capabilities": sets}
    bundle = bz.bundle("pause", process=process)
    assert bz.create("one", bundle).endswith(warning)
    assert bz.create("two", bundle, "--detach", verb="run").endswith(warning)
    assert bz("run", "--bundle", str(bz.bundle("true", name="b", process=process)), "three").stderr.endswith(
        warning
    )
    told = bz("exec", "--cap", "CAP_Y", "one", "true").stderr
    assert told.endswith(warning.replace("CAP_X", "CAP_X CAP_Y"))
    assert bz("exec", "--env", "A=1", "two", "true").stderr.count("level=warning") == 1


def test_the_usual_capabilities_are_no_warning(bz):
    assert bz.create("one", bz.bundle("pause")) == ""
    assert bz("exec", "--cap", "CAP_SYS_ADMIN", "one", "true").stderr == ""


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer"])
def test_what_a_hook_mounts_in_the_root_file_system_is_there_and_nowhere_else(bz, tmp_path, stage):
    """As with runc, whose createContainer hooks are in the container's mount namespace: toolkits for devices
    mount libraries so.
    """
    (tmp_path / "file").write_text("of the hook\n")
    (tmp_path / "directory/below").mkdir(parents=True)
    root = tmp_path / "bundle/rootfs"
    script = (
        f"touch {root}/etc/f; mkdir -p {root}/etc/d; "
        f"mount --bind {tmp_path}/file {root}/etc/f; mount --bind {tmp_path}/directory {root}/etc/d"
    )
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
    bundle = bz.bundle("sh", "-c", "cat /etc/f; ls /etc/d", hooks={stage: [hook]})
    assert bz("run", "--bundle", str(bundle), "one").stdout == "of the hook\nbelow\n"
    assert (root / "etc/f").read_text() == ""
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
