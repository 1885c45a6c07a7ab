"""`bz run` without an image: what the command finds, what it may do, how it ends, what is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from flow.cli import BZ, DEADLINE_S, SETTINGS, Cli, needs_host, read

pytestmark = needs_host


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Where this module's sandboxes lie."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def bz(tmp_path, store):
    cli = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{store}/images"')
    yield cli
    cli.close()


def run(bz, *words, **more):
    return bz.bz("run", "--network", "none", *words, **more)


def sh(bz, script, *flags, **more):
    return run(bz, *flags, "--", "sh", "-c", script, **more)


def places(store):
    """The sandboxes on the disk."""
    return sorted(os.listdir(store / "sandboxes"))


@pytest.fixture
def clean(bz, store):
    """Nothing may be left of what the test ran."""
    yield
    assert bz.left() == []
    assert places(store) == []


@pytest.mark.usefixtures("clean")
def test_one_command_from_nothing_to_an_answer(bz):
    done = run(bz, "--", "python3", "-c", "print(6 * 7)")
    assert (done.stdout, done.stderr) == ("42\n", "")


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["/etc/passwd"], 126),
        (["no-such-program"], 127),
    ],
)
def test_the_exit_status_is_dockers(bz, command, status):
    done = run(bz, "--", *command, check=status)
    assert len(done.stderr.splitlines()) == (status in (126, 127))


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--no-such-flag", "--", "true"), "flag provided but not defined"),
        (("-v", "/no/such:/x", "--", "true"), "no such file or directory: /no/such"),
        (("-v", "named:/x", "--", "true"), "named volumes are not supported"),
        (("-u", "nobody-here", "--", "true"), "no such user"),
        (("--memory", "lots", "--", "true"), "expected a size"),
        (("--cap-add", "FLY", "--", "true"), "unknown capability: 'FLY'"),
        (("-p", "80:80", "--", "true"), "cannot be published without a network"),
        (("-d", "-t", "--", "true"), "-d cannot be used with"),
        (("--",), "no command is given"),
        (("--ulimit", "nofile", "--", "true"), "expected NAME=SOFT"),
        (
            ("--ulimit", "nofile=2:1", "--", "true"),
            "--ulimit: the soft limit exceeds the hard one: nofile=2:1",
        ),
        (("--ulimit", "nofiles=1", "--", "true"), "--ulimit: unknown: nofiles (hint: known: as, core, cpu"),
        (("-v", "relative", "--", "true"), "--volume: expected an absolute path inside, got relative"),
        (("--memory", "4k", "--", "true"), "--memory: expected at least 512k, got 4k"),
        (("--cpus", "9999", "--", "true"), "--cpus: expected a number from 0.01 to 1024"),
        (("--egress", "example.org", "--", "true"), "egress: 'example.org': expected an IPv4 address"),
        (("--pull", "sometimes", "--", "true"), "--pull: expected missing, always or never, got sometimes"),
        (("--kvm", "perhaps", "--", "true"), "--kvm: expected require, warn or allow, got perhaps"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_125(bz, store, words, says):
    (store / "sandboxes").mkdir(exist_ok=True)
    done = run(bz, *words, check=125)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("clean")
def test_the_root_has_the_hosts_programs_and_none_of_its_data(bz):
    script = "ls -A /etc; echo; ls -A /home /root /srv /opt /var/lib | grep -v -e : -e misc -e '^$'; echo end"
    etc, _, rest = sh(bz, script).stdout.partition("\n\n")
    assert {"passwd", "group", "hosts", "resolv.conf", "ld.so.cache", "ssl"} <= set(etc.split())
    assert not {"shadow", "ssh", "fstab", "machine-id", "sudoers"} & set(etc.split())
    assert rest == "end\n"
    assert sh(bz, "cat /etc/passwd | wc -l; ls /etc/ssl").stdout.split()[0] == "2"


@pytest.mark.usefixtures("clean")
def test_the_letter_for_help_is_the_host_name_where_dockers_is(bz):
    assert run(bz, "-h", "other", "--", "hostname").stdout == "other\n"
    assert "NAME:\n   bz run" in run(bz, "--help").stdout


@pytest.mark.usefixtures("clean")
def test_what_is_written_to_usr_is_gone_afterwards(bz):
    name = "/usr/bin/bufferzone-was-here"
    script = f"echo 'echo changed' >{name}; chmod +x {name}; {name}; rm /usr/bin/env; ls /usr/bin/env"
    assert sh(bz, script, check=2).stdout == "changed\n"
    assert not os.path.exists(name)
    assert os.path.exists("/usr/bin/env")


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("directory", ["/etc/alternatives", "/etc/ssl/certs"])
def test_the_hosts_links_in_etc_are_there_and_what_is_done_to_them_is_gone_afterwards(bz, store, directory):
    before = sorted(os.listdir(directory))
    script = f"ls -A {directory}; rm -r {directory}/*; echo x >{directory}/was-here; ls {directory}"
    *found, left = sh(bz, script).stdout.splitlines()
    assert (sorted(found), left) == (before, "was-here")
    assert sorted(os.listdir(directory)) == before
    assert os.listdir(store / "sandboxes") == []


@pytest.mark.usefixtures("clean")
def test_a_read_only_root_takes_nothing(bz):
    places = ("/usr/x", "/etc/x", "/etc/ssl/certs/x", "/x")
    done = sh(bz, f"touch {' '.join(places)}; touch /t/x && echo t", "--read-only", "--tmpfs", "/t")
    assert done.stderr.count("Read-only file system") == len(places)
    assert done.stdout == "t\n"


@pytest.mark.usefixtures("clean")
def test_stdin_is_read_when_it_is_asked_for_and_not_before(bz):
    assert run(bz, "-i", "--", "cat", input="text").stdout == "text"
    assert run(bz, "--", "cat", input="text").stdout == ""


@pytest.mark.usefixtures("clean")
def test_the_flags_of_the_process_do_what_they_say(bz, tmp_path):
    (tmp_path / "env").write_text("# comment\nA=file\nB=file\n")
    flags = ("--env-file", str(tmp_path / "env"), "-e", "A=flag", "-w", "/srv", "--hostname", "box")
    flags += ("-u", "1234:5", "--ulimit", "nofile=100:200", "--label", "who=me", "--cap-drop", "ALL")
    script = "echo $A $B $(pwd) $(hostname) $(id -u):$(id -g) $(ulimit -Sn):$(ulimit -Hn); "
    script += "grep CapBnd /proc/self/status"
    line, caps = sh(bz, script, *flags).stdout.splitlines()
    assert line == "flag file /srv box 1234:5 100:200"
    assert int(caps.split()[1], 16) == 0
    assert run(bz, "--entrypoint", "echo", "--", "-n", "said").stdout == "said"


@pytest.mark.usefixtures("clean")
def test_volumes_are_the_hosts_and_as_read_only_as_asked(bz, tmp_path):
    (tmp_path / "v").mkdir()
    flags = ("-v", f"{tmp_path}/v:/rw", "-v", f"{tmp_path}/v:/ro:ro")
    flags += (
        "--mount",
        f"type=bind,src={tmp_path}/v,dst=/long,readonly",
        "--mount",
        "type=tmpfs,target=/mem",
    )
    done = sh(
        bz, "echo new >/rw/file; cat /ro/file /long/file; touch /ro/x /long/x; stat -f -c %T /mem", *flags
    )
    assert done.stdout == "new\nnew\ntmpfs\n"
    assert done.stderr.count("Read-only file system") == 2
    assert (tmp_path / "v/file").read_text() == "new\n"


@pytest.mark.usefixtures("clean")
@pytest.mark.skipif(not os.path.exists("/usr/bin/catatonit"), reason="needs catatonit")
def test_with_init_the_command_is_not_process_one(bz):
    assert sh(bz, "echo $$; cat /proc/1/comm", "--init").stdout.split()[0] != "1"


@pytest.mark.usefixtures("clean")
def test_a_time_limit_kills(bz):
    run(bz, "--timeout", "0.2s", "--", "sleep", "1000", check=137)
    assert run(bz, "--timeout", "1h", "--", "echo", "soon").stdout == "soon\n"


def test_a_name_stays_until_it_is_removed(bz, store):
    run(bz, "--name", "one", "--", "sh", "-c", "exit 3", check=3)
    assert bz.state("one")["status"] == "stopped"
    assert len(places(store)) == 1
    again = run(bz, "--name", "one", "--", "true", check=125)
    assert "a container with that name exists: one" in again.stderr
    assert bz.bz("rm", "one").stdout == "one\n"
    assert (bz.left(), places(store)) == ([], [])
    assert "does not exist" in bz.bz("rm", "one", check=1).stderr
    bz.bz("rm", "-f", "one")


def test_detached_it_goes_on_and_its_output_is_kept(bz, store):
    done = run(bz, "-d", "--label", "who=me", "--", "sh", "-c", "echo up; exec sleep 1000")
    id = done.stdout.strip()
    found = bz.state(id)
    assert (found["status"], found["annotations"]["who"]) == ("running", "me")
    assert "is not stopped" in bz.bz("rm", id, check=1).stderr
    assert bz("exec", id, "echo", "inside").stdout == "inside\n"
    assert (Path(found["bundle"]) / "stdout.log").read_text() == "up\n"
    bz.bz("rm", "-f", id)
    assert (bz.left(), places(store)) == ([], [])


def test_what_a_killed_command_left_the_next_one_removes(bz, store):
    words = bz.command("run", "--network", "none", "--", "sh", "-c", "echo up; exec sleep 1000", program=BZ)
    reader, writer = os.pipe()
    process = subprocess.Popen(words, env={}, stdout=writer)
    os.close(writer)
    assert read(reader) == b"up\n"
    process.kill()
    process.wait()
    assert select.select([reader], [], [], DEADLINE_S)[0]  # its end: the shim has ended the process
    os.close(reader)
    assert len(places(store)) == 1
    for id in bz.left():
        if not id.startswith(("@", "kvm")):
            bz("delete", "--force", id)
    run(bz, "--", "true")
    assert places(store) == []


def test_an_interrupt_reaches_the_command(bz):
    script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.05; done"
    words = bz.command("run", "--network", "none", "--", "sh", "-c", script, program=BZ)
    process = subprocess.Popen(words, env={}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert (out, process.returncode) == ("caught\n", 9)


def test_with_a_terminal_the_command_has_one(bz):
    master, slave = os.openpty()
    words = bz.command("run", "--network", "none", "-it", "--", "sh", "-c", "tty && echo $TERM", program=BZ)
    process = subprocess.Popen(words, env={}, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while b"xterm" not in seen:
        seen += read(master)
    assert process.wait(DEADLINE_S) == 0
    assert b"/dev/pts/0" in seen
    os.close(master)


def test_what_bz_started_is_listed_by_both_commands(bz):
    id = run(bz, "-d", "--", "sleep", "1000").stdout.strip()
    assert id in bz("list").stdout
    assert id in bz.bz("ps").stdout
    assert json.loads(bz("state", id).stdout)["id"] == id
    bz.bz("rm", "-f", id)
