"""Docker drives both faces: the shim as `runtimeType`, and the command line as `path` behind runc's shim.

A dockerd and a containerd of our own, in a network namespace and a mount namespace of theirs; nothing of the
user's is touched. Where dockerd is older than 23 it knows no `runtimeType`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.cli.bz import engine_files
from vm import pages
from vm.containerd import Containerd
from vm.podman import ROOT, Terminal, read_until
from vm.verbs import await_true

pytestmark = [
    pytest.mark.vm,
    *(
        pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed: {package}")
        for program, package in (
            ("dockerd", "docker.io"),
            ("docker", "docker-cli"),
            ("containerd", "containerd"),
        )
    ),
]

TIMEOUT_S = 240
SHIM = "io.containerd.bufferzone.v2"
#: what a network namespace and a mount namespace of one's own need before dockerd starts
_ENTER = """\
import os, sys
sys.path.insert(0, {source!r})
from bufferzone.linux import mount as mnt, process
process.unshare(process.CLONE_NEWNET)
os.execv("/bin/sh", ["/bin/sh", "-c", "ip link set lo up; exec \\"$@\\"", "sh", *sys.argv[1:]])
"""
_SHARED = """\
import os, sys
sys.path.insert(0, {source!r})
from bufferzone.linux import mount as mnt, process
process.unshare(process.CLONE_NEWNS)
mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_SHARED)
os.execv(sys.argv[1], sys.argv[1:])
"""


def _version() -> int:
    said = subprocess.run(["dockerd", "--version"], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"version (\d+)", said)
    return int(found.group(1)) if found else 0


class Docker:
    """A daemon with the image `bb`; `runtime` is what `--runtime` says."""

    def __init__(self, directory: Path, containerd: Containerd) -> None:
        self._directory, self._containerd = directory, containerd
        self.runtime = ""

    def start(self) -> None:
        self._containerd.start()
        enter = (sys.executable, "-c", _ENTER.format(source=str(ROOT / "src")))
        self._start_dockerd(*enter)

    def kill_and_start(self) -> None:
        """SIGKILL to dockerd, and another one in the network namespace that has the bridges."""
        fd = os.open(f"/proc/{self.process.pid}/ns/net", os.O_RDONLY)
        try:
            self.process.kill()
            self.process.wait(TIMEOUT_S)
            (self._directory / "docker.pid").unlink()
            self._start_dockerd("nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "--")
        finally:
            os.close(fd)

    def _start_dockerd(self, *enter: str) -> None:
        ours = {"path": str(ROOT / "bin" / "bufferzone")}
        runtimes: dict[str, Any] = {"cli": ours, "bufferzone": ours}  # the latter is that of Docker's page
        if _version() >= 23:
            runtimes["shim"] = {"runtimeType": SHIM}
            small = self._directory / "small.toml"
            small.write_text("memory_mib = 192\n")
            runtimes["small"] = {"runtimeType": SHIM, "options": {"ConfigPath": str(small)}}
        self._settings = {"runtimes": runtimes, "live-restore": True}
        settings = self._directory / "daemon.json"
        settings.write_text(json.dumps(self._settings))
        flags = {
            "containerd": self._containerd.socket,
            "data-root": str(self._directory / "data"),
            "exec-root": str(self._directory / "exec"),
            "pidfile": str(self._directory / "docker.pid"),
            "config-file": str(settings),
            "host": self.host,
            "bip": "10.77.0.1/16",
        }
        off = [f"--{name}=false" for name in ("iptables", "ip6tables", "ip-forward", "ip-masq")]
        mounts = ["nsenter", f"--mount=/proc/{self._containerd.process.pid}/ns/mnt", "--"]
        self._log = self._directory / "dockerd.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*mounts, *enter, "dockerd", *off, *(f"--{name}={value}" for name, value in flags.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await_true(lambda: "API listen on" in self._log.read_text(), "dockerd")

    def use_by_default(self, runtime: str) -> None:
        """Also where no runtime is named, as for a step of `docker build`. SIGHUP: dockerd reads again."""
        settings = {**self._settings, "default-runtime": runtime}
        (self._directory / "daemon.json").write_text(json.dumps(settings))
        self.process.send_signal(signal.SIGHUP)
        await_true(
            lambda: self("info", "--format", "{{.DefaultRuntime}}") == f"{runtime}\n", "the new settings"
        )

    @property
    def host(self) -> str:
        """Where it listens, as DOCKER_HOST has it."""
        return f"unix://{self._directory}/docker.sock"

    def command(self, *words: str) -> list[str]:
        return ["docker", "--host", self.host, *words]

    def __call__(self, *words: str, check: int | None = 0, stdin: bytes = b"") -> str:
        """Both outputs, and with another status than `check` what was said."""
        done = subprocess.run(self.command(*words), input=stdin, capture_output=True, timeout=TIMEOUT_S)
        text = done.stdout.decode() + done.stderr.decode()
        assert check is None or done.returncode == check, (words, text, self._log.read_text()[-2000:])
        return text

    def run(self, *words: str, check: int = 0, stdin: bytes = b"") -> str:
        return self("run", "--runtime", self.runtime, *words, check=check, stdin=stdin)

    def in_its_network(self, *words: str) -> str:
        command = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout

    def stop(self) -> None:
        for process in (self.process, self._containerd.process):
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    directory = tmp_path_factory.mktemp("docker")
    shared = (sys.executable, "-c", _SHARED.format(source=str(ROOT / "src")))
    docker = Docker(directory, Containerd(directory, shared))
    docker.start()
    try:
        sys.path.insert(0, str(ROOT / "scripts"))
        try:
            import busybox_image
        finally:
            sys.path.pop(0)
        docker("import", "-", "bb", stdin=busybox_image.layer())
        yield docker
    finally:
        docker.stop()


@pytest.fixture(params=["shim", "cli"])
def docker(request: pytest.FixtureRequest, daemon: Docker) -> Iterator[Docker]:
    if request.param == "shim" and _version() < 23:
        pytest.skip("this dockerd knows no runtimeType: 23 or newer does")
    daemon.runtime = request.param
    yield daemon
    for id in daemon("ps", "--all", "--quiet").split():
        daemon("rm", "--force", id, check=None)


def test_a_container_lives_as_docker_says(docker: Docker) -> None:
    script = "trap 'echo term; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    docker.run("--detach", "--name", "one", "--network", "none", "bb", "sh", "-c", script)
    assert "in\n" in docker("exec", "one", "sh", "-c", "echo in; exit 4", check=4)
    assert docker("inspect", "-f", "{{.State.Running}}", "one") == "true\n"
    assert docker("exec", "--interactive", "one", "cat", stdin=b"through\n") == "through\n"
    docker("pause", "one")
    assert "(Paused)" in docker("ps")
    docker("unpause", "one")
    docker("update", "--memory", "100m", "--memory-swap", "100m", "one")
    assert docker("exec", "one", "cat", "/sys/fs/cgroup/memory.max") == f"{100 << 20}\n"
    assert "one" in docker("stats", "--no-stream", "one")
    docker("restart", "one")
    # before its trap is set PID 1 is deaf to the signal
    await_true(lambda: docker("logs", "one").split()[2:] == ["up"], "its second beginning")
    docker("stop", "one")
    assert docker("logs", "one").split() == ["up", "term", "up", "term"]
    assert docker("inspect", "-f", "{{.State.ExitCode}}", "one") == "9\n"
    docker("start", "one")
    docker("rm", "--force", "one")


def test_a_runtime_of_the_engines_has_settings_of_its_own(daemon: Docker) -> None:
    if _version() < 23:
        pytest.skip("this dockerd knows no runtimeType: 23 or newer does")
    words = ("--rm", "--network", "none", "--runtime", "small", "bb", "grep", "MemTotal", "/proc/meminfo")
    assert int(daemon("run", *words).split()[1]) < 192 << 10


def test_what_run_is_told_of_the_process_holds_in_it(docker: Docker) -> None:
    script = (
        "id -u; id -g; grep CapEff /proc/self/status; ulimit -n; pwd; echo $WORD; hostname; cat /proc/1/comm"
    )
    told = ("--user", "1234:99", "--workdir", "/tmp", "--env", "WORD=said", "--hostname", "guest", "--init")
    told += ("--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--ulimit", "nofile=77:88", "--network", "none")
    said = docker.run("--rm", *told, "bb", "sh", "-c", script).splitlines()
    init = "docker-init" if "docker-init" in said[-1:] else "tini"
    assert said == ["1234", "99", "CapEff:\t0000000000000000", "77", "/tmp", "said", "guest", init]
    script = "id -u; grep CapEff /proc/self/status"
    said = docker.run("--rm", *told[6:], "bb", "sh", "-c", script).splitlines()
    assert said == ["0", "CapEff:\t0000000000001000"]


def test_what_run_is_told_of_memory_and_cpus_holds_in_the_guest(docker: Docker) -> None:
    limits = ("--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "50")
    script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max"
    said = docker.run("--rm", "--network", "none", *limits, "bb", "sh", "-c", script).split()
    assert said == [f"{64 << 20}", "50000", "100000", "50"]
    fill = ("bb", "sh", "-c", "exec tail /dev/zero")
    docker.run("--name", "greedy", "--network", "none", *limits, *fill, check=137)
    if docker.runtime == "shim":  # runc's looks at the host's cgroup, where nobody was killed
        assert docker("inspect", "--format", "{{.State.OOMKilled}}", "greedy") == "true\n"


def test_what_run_is_told_of_files_holds_in_the_container(docker: Docker, tmp_path: Path) -> None:
    for name in ("writable", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n")
    docker("volume", "create", "named")
    try:
        mounts = (
            "--volume",
            f"{tmp_path}/writable:/writable",
            "--volume",
            "named:/named",
            "--tmpfs",
            "/t:size=1m",
        )
        mounts += ("--mount", f"type=bind,source={tmp_path}/kept,target=/kept,readonly", "--read-only")
        script = """
            cat /writable/file /kept/file; echo new >/writable/file; echo kept >/named/file
            for each in /kept/file /file; do (: >$each) 2>&1 | sed 's/.*: //'; done
            dd if=/dev/zero of=/t/file bs=1M count=2 2>&1 | grep -o 'No space left on device'
        """
        said = docker.run("--rm", "--network", "none", *mounts, "bb", "sh", "-c", script).splitlines()
        assert said == ["writable", "kept", *["Read-only file system"] * 2, "No space left on device"]
        assert (tmp_path / "writable/file").read_text() == "new\n"
        assert (
            docker.run("--rm", "--network", "none", "-v", "named:/n:ro", "bb", "cat", "/n/file") == "kept\n"
        )
    finally:
        docker("volume", "rm", "named")


def test_a_container_that_fails_is_restarted_as_its_policy_says(docker: Docker, tmp_path: Path) -> None:
    script = "echo begun >>/said/file; exit 3"
    words = ("--detach", "--restart", "on-failure:2", "--network", "none", "--volume", f"{tmp_path}:/said")
    docker.run(*words, "--name", "again", "bb", "sh", "-c", script)
    state = ("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "again")
    await_true(lambda: docker(*state) == "exited 3 2\n", "the last restart")
    assert (tmp_path / "file").read_text() == "begun\n" * 3


def test_the_health_of_a_container_is_asked_in_it(docker: Docker, tmp_path: Path) -> None:
    asked = ("--health-cmd", "test -e /flags/well", "--health-interval", "1s", "--health-retries", "1")
    words = ("--detach", "--network", "none", "--name", "patient", "--volume", f"{tmp_path}:/flags")
    docker.run(*words, *asked, "bb", "sleep", "1000")
    health = ("inspect", "--format", "{{.State.Health.Status}}", "patient")
    await_true(lambda: docker(*health) == "unhealthy\n", "the first answer")
    (tmp_path / "well").touch()
    await_true(lambda: docker(*health) == "healthy\n", "the next answer")


def test_an_image_is_built_in_vms_and_one_is_made_of_a_container(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    user = "echo someone:x:77:77::/:/bin/sh >>/etc/passwd"
    steps = ("FROM bb", "COPY Dockerfile /copied", f"RUN {boot_id} >/built && {user}", "USER someone")
    (tmp_path / "Dockerfile").write_text("\n".join([*steps, "CMD id -un", ""]))
    docker.use_by_default(docker.runtime)
    try:
        # the builder that has steps run by the runtime: BuildKit calls runc by name, whatever is set
        monkeypatch.setenv("DOCKER_BUILDKIT", "0")
        docker("build", "--tag", "built", str(tmp_path))
        words = ("--network", "none", "built")
        assert docker.run("--rm", *words) == "someone\n"
        there = docker.run("--rm", *words, "cat", "/built", "/copied")
        assert Path(boot_id.split()[1]).read_text() not in there
        assert there.endswith((tmp_path / "Dockerfile").read_text())
        docker.run("--name", "changed", "--user", "0", *words, "sh", "-c", "echo more >/more; rm /copied")
        docker("commit", "--change", "CMD cat /more", "changed", "made")
        assert docker.run("--rm", "--network", "none", "made") == "more\n"
        assert "A /more" in docker("diff", "changed")
        docker("rm", "changed")
    finally:
        docker.use_by_default("runc")
        docker("image", "rm", "--force", "made", "built", check=None)


def test_files_are_copied_both_ways(docker: Docker, tmp_path: Path) -> None:
    docker.run("--detach", "--name", "two", "--network", "none", "bb", "sleep", "1000")
    (tmp_path / "file").write_text("from the host\n")
    docker("cp", str(tmp_path / "file"), "two:/tmp/file")
    assert docker("exec", "two", "cat", "/tmp/file") == "from the host\n"
    docker("cp", "two:/etc/passwd", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text().startswith("root:")


def test_a_published_port_is_served_from_the_bridge(docker: Docker) -> None:
    serve = "echo hello >/tmp/page; exec httpd -f -p 80 -h /tmp"
    docker.run("--detach", "--name", "web", "--publish", "8099:80", "bb", "sh", "-c", serve)
    # the port is docker's from the start; whether the server listens by now is another question
    fetch = ("busybox", "wget", "-qO-", "http://127.0.0.1:8099/page")

    def served() -> bool:
        try:
            return docker.in_its_network(*fetch) == "hello\n"
        except subprocess.CalledProcessError:
            return False

    await_true(served, "the page")


def test_a_network_is_connected_to_a_running_container_and_disconnected(docker: Docker) -> None:
    docker("network", "create", "--subnet", "10.78.0.0/16", "more")
    try:
        docker.run("--detach", "--name", "five", "bb", "sleep", "1000")
        docker("network", "connect", "more", "five")
        ping = ("exec", "five", "ping", "-c", "1", "-W", "5")
        await_true(lambda: "1 packets received" in docker(*ping, "10.78.0.1", check=None), "the network")
        told = docker("inspect", "-f", "{{.NetworkSettings.Networks.more.IPAddress}}", "five").strip()
        assert f"inet {told}/16" in docker("exec", "five", "ip", "address", "show", "eth1")
        docker("network", "disconnect", "more", "five")
        links = ("exec", "five", "ls", "/sys/class/net")
        await_true(lambda: docker(*links).split() == ["eth0", "lo"], "eth1 to go")
        assert "1 packets received" in docker(*ping, "10.77.0.1")
        docker("rm", "--force", "five")
    finally:
        docker("network", "rm", "more")


def test_a_terminal_is_one_and_its_status_arrives(docker: Docker) -> None:
    words = docker.command("run", "--rm", "--runtime", docker.runtime, "--network", "none", "-it", "bb")
    command = " ".join([*words, "sh", "-c", "'tty; exit 5'"])
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert (b"/dev/pts/0" in done.stdout, done.returncode) == (True, 5), done.stdout


@pytest.mark.parametrize("of_the_container", [False, True])
def test_a_terminal_of_an_exec_follows_its_size_and_ends(docker: Docker, of_the_container: bool) -> None:
    flags = ("--detach", "-it") if of_the_container else ("--detach",)
    docker.run(*flags, "--name", "seven", "--network", "none", "bb", "sleep", "1000")
    with Terminal(docker.command("exec", "-it", "seven", "sh"), dict(os.environ), size=(91, 33)) as terminal:
        terminal.type(b"while [ \"$(stty size)\" != '33 91' ]; do :; done; tty; echo fi''rst\r")
        assert b"/dev/pts/" in terminal.until(b"first")
        terminal.resize(77, 22)
        terminal.type(b"while [ \"$(stty size)\" != '22 77' ]; do :; done; echo se''cond\r")
        terminal.until(b"second")
        script = b"trap \"echo inter''rupted; exit\" INT; echo wai''ting; while :; do :; done"
        terminal.type(b"sh -c '" + script + b"'; exit 6\r")
        terminal.until(b"waiting")
        terminal.type(b"\x03")
        terminal.until(b"interrupted")
        assert terminal.wait() == 6
    docker("rm", "--force", "seven")


def test_a_container_with_an_open_terminal_is_removed_by_force(docker: Docker) -> None:
    docker.run("--detach", "--name", "eight", "--network", "none", "bb", "sleep", "1000")
    with Terminal(docker.command("exec", "-it", "eight", "sh"), dict(os.environ)) as terminal:
        terminal.type(b"echo re''ady\r")
        terminal.until(b"ready")
        docker("rm", "--force", "eight")
        assert terminal.wait() == 137
    assert docker("ps", "--all", "--quiet") == ""


def test_top_tells_of_the_container_and_its_execs(docker: Docker) -> None:
    if docker.runtime == "cli":
        pytest.skip("runc's shim asks `ps`, whose pids are the guest's")
    docker.run("--detach", "--name", "three", "--network", "none", "bb", "sleep", "1000")
    docker("exec", "--detach", "three", "sleep", "2000")
    lines = docker("top", "three").splitlines()[1:]
    assert sorted(line.split()[-2:] for line in lines) == [["sleep", "1000"], ["sleep", "2000"]]


def test_attach_leaves_and_comes_back(docker: Docker) -> None:
    script = "while read x; do echo got $x; done"
    docker.run("--detach", "-i", "--name", "four", "--network", "none", "bb", "sh", "-c", script)
    for word in (b"first", b"second"):
        with subprocess.Popen(
            docker.command("attach", "--sig-proxy=false", "four"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as client:
            assert client.stdin is not None
            client.stdin.write(word + b"\n")
            client.stdin.flush()
            read_until(client.stdout, b"got " + word)
            client.kill()
    assert docker("inspect", "-f", "{{.State.Running}}", "four") == "true\n"


def test_containers_of_a_users_network_find_each_other_by_name(docker: Docker) -> None:
    docker("network", "create", "--subnet", "10.79.0.0/16", "named")
    try:
        on = ("--detach", "--network", "named")
        docker.run(*on, "--name", "db", "--network-alias", "store", "bb", "sleep", "1000")
        docker.run(*on, "--name", "app", "bb", "sleep", "1000")
        told = docker("inspect", "-f", "{{.NetworkSettings.Networks.named.IPAddress}}", "db").strip()
        assert "nameserver 127.0.0.11" in docker("exec", "app", "cat", "/etc/resolv.conf")
        for name in ("db", "store"):
            assert told in docker("exec", "app", "nslookup", name)
            assert "1 packets received" in docker("exec", "app", "ping", "-c", "1", "-W", "5", name)
        # one that serves names itself has the port that is everybody's
        docker("exec", "--detach", "app", "nc", "-u", "-l", "-p", "53")
        docker("rm", "--force", "app", "db")
    finally:
        docker("network", "rm", "named")


def test_a_network_that_is_connected_later_brings_its_names(docker: Docker) -> None:
    docker("network", "create", "--subnet", "10.80.0.0/16", "later")
    try:
        docker.run("--detach", "--name", "six", "bb", "sleep", "1000")
        docker("network", "connect", "--alias", "itself", "later", "six")
        told = docker("inspect", "-f", "{{.NetworkSettings.Networks.later.IPAddress}}", "six").strip()
        ask = ("exec", "six", "nslookup", "itself", "127.0.0.11")
        await_true(lambda: told in docker(*ask, check=None).partition("itself")[2], "the name")
        docker("rm", "--force", "six")
    finally:
        docker("network", "rm", "later")


def test_the_services_of_a_compose_file_find_each_other_and_go_together(
    docker: Docker, tmp_path: Path
) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60).returncode:
        pytest.skip("docker compose is not installed: docker-compose of Debian 13")
    alike = {"image": "bb", "runtime": docker.runtime, "init": True, "networks": ["inside"]}
    healthy = {"test": ["CMD", "test", "-e", "/srv/index.html"], "interval": "1s", "retries": 120}
    write = "echo of $$NAME > /srv/index.html; exec httpd -f -p 80 -h /srv"
    fetch = "until wget -q -O /kept/page http://web/; do sleep 0.2; done; exec sleep 1000"
    services = {
        "web": alike
        | {"command": ["sh", "-c", write], "environment": {"NAME": "compose"}, "tmpfs": ["/srv"]}
        | {"healthcheck": healthy, "mem_limit": "64m"},
        "reader": alike
        | {"command": ["sh", "-c", fetch], "volumes": ["kept:/kept"]}
        | {"depends_on": {"web": {"condition": "service_healthy"}}},
    }
    network = {"ipam": {"config": [{"subnet": "10.81.0.0/16"}]}}
    file = tmp_path / "compose.json"
    file.write_text(
        json.dumps({"services": services, "networks": {"inside": network}, "volumes": {"kept": None}})
    )
    words = ("compose", "--progress", "plain", "--project-name", "both", "--file", str(file))
    try:
        docker(*words, "up", "--detach")
        page = ("exec", "--no-TTY", "reader", "cat", "/kept/page")
        await_true(lambda: docker(*words, *page, check=None) == "of compose\n", "the page", TIMEOUT_S)
        docker(*words, "restart", "--timeout", "0", "web")
        assert docker(*words, "ps", "--services", "--status", "running").split() == ["reader", "web"]
        docker(*words, "up", "--detach", "--scale", "reader=2")
        assert len(docker(*words, "ps", "--quiet", "reader").split()) == 2
    finally:
        docker(*words, "down", "--timeout", "0", "--volumes")
    assert not docker("ps", "--all", "--quiet")
    assert "both" not in docker("volume", "ls") + docker("network", "ls")


def test_the_file_of_the_page_is_what_bz_node_writes() -> None:
    shown = pages.file_of("docker.md", "json")
    assert json.loads(shown) == json.loads(engine_files.with_docker("", "/usr/local/bin/bufferzone"))


@pytest.mark.parametrize("block", pages.params("sh", "docker"))
def test_a_block_of_the_page_runs(daemon: Docker, block: pages.Block, tmp_path: Path) -> None:
    daemon("tag", "bb", "busybox")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_HOST": daemon.host}
    printed = pages.run(block, pages.shell(block.text), environment, tmp_path)
    assert block.printed in (None, printed)
    assert os.uname().release not in printed.split()
    assert daemon("ps", "--all", "--quiet") == ""


def test_containers_outlive_a_dockerd_that_is_killed(docker: Docker, tmp_path: Path) -> None:
    script = "while ! test -e /flags/end; do sleep 0.1; done; exit 7"
    docker.run("-d", "--name", "stays", "bb", "sleep", "1000")
    docker.run("-d", "--name", "ends", "-v", f"{tmp_path}:/flags", "bb", "sh", "-c", script)
    boot_id = docker("exec", "stays", "cat", "/proc/sys/kernel/random/boot_id")
    docker.kill_and_start()
    assert docker("exec", "stays", "cat", "/proc/sys/kernel/random/boot_id") == boot_id
    (tmp_path / "end").touch()
    assert docker("wait", "ends").strip() == "7"
    docker("stop", "--time", "0", "stays")
    assert (
        docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "stays").strip()
        == "exited 137"
    )
