"""What bz does with containers that run: files, a shell, processes, counters, ports, events; and what it
refuses."""

from __future__ import annotations

import gzip
import io
import json
import os
import select
import subprocess
import tarfile

import pytest

from flow.cli import BZ, DEADLINE_S, SETTINGS, Cli, needs_host

pytestmark = needs_host


@pytest.fixture(scope="module")
def bz(tmp_path_factory):
    base = tmp_path_factory.mktemp("verbs")
    cli = Cli(base, f'{SETTINGS}\nimage_store = "{base}/images"')
    cli.bz("run", "-d", "--network", "none", "--name", "box", "--", "sh", "-c", "echo up; sleep 1000")
    yield cli
    cli.bz("rm", "-f", "box")
    cli.close()


def test_files_go_in_and_come_out(bz, tmp_path):
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/f").write_text("text")
    bz.bz("cp", str(tmp_path / "tree"), "box:/srv/new")
    assert bz.bz("exec", "box", "cat", "/srv/new/below/f").stdout == "text"
    bz.bz("cp", str(tmp_path / "tree/below/f"), "box:/srv")
    assert bz.bz("exec", "box", "cat", "/srv/f").stdout == "text"
    bz.bz("cp", f"{tmp_path}/tree/.", "box:/srv")
    assert bz.bz("exec", "box", "cat", "/srv/below/f").stdout == "text"
    bz.bz("cp", "box:/srv/new", str(tmp_path))
    assert (tmp_path / "new/below/f").read_text() == "text"
    bz.bz("cp", "box:/srv/f", str(tmp_path / "other"))
    assert (tmp_path / "other").read_text() == "text"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("box:/no/such", "/tmp/x-of-bz"),
            "bz: cannot copy '/no/such' out of box: no such file or directory\n",
        ),
        (
            ("box:such", "/tmp/x-of-bz"),
            "cannot copy 'such' out of box: no such file or directory (hint: a relative path begins",
        ),
        (("/etc/hostname", "box:/sys/x"), "cannot copy to '/sys/x' in box: read-only file system"),
        (("/etc/hostname", "box:/etc/passwd/x"), "cannot copy to '/etc/passwd' in box: file exists"),
        (("/no/such", "box:/tmp"), "cannot read '/no/such'"),
        (("box:/a", "box:/b"), "expected NAME:PATH TARGET"),
        (("/a", "/b"), "expected NAME:PATH TARGET"),
        (("nobody:/a", "/tmp/x-of-bz"), "does not exist"),
        (("box:", "/tmp/x-of-bz"), "expected NAME:PATH, got box:"),
    ],
)
def test_what_cannot_be_copied_is_one_line(bz, words, says):
    done = bz.bz("cp", *words, check=1)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not os.path.exists("/tmp/x-of-bz")


def tar(members) -> bytes:
    """(name, type, content or target) each."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o640
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content.decode()
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def cp(bz, *words, stdin=b""):
    return subprocess.run(bz.command("cp", *words, program=BZ), input=stdin, capture_output=True, timeout=60)


def test_a_tar_goes_in_and_comes_out_as_with_docker(bz):
    bz.bz("exec", "box", "sh", "-c", "mkdir -p /srv/tar && chmod 1777 /srv/tar")
    members = [
        ("a/b/c", tarfile.REGTYPE, b"text"),
        ("./l", tarfile.SYMTYPE, b"/etc/passwd"),
        ("d", b"5", b""),
    ]
    for packed in (tar(members), gzip.compress(tar(members))):
        done = cp(bz, "-", "box:/srv/tar", stdin=packed)
        assert (done.returncode, done.stderr) == (0, b"")
        script = "cd /srv/tar; cat a/b/c; readlink l; stat -c '%a' . a/b/c d; rm -r a l d"
        assert bz.bz("exec", "box", "sh", "-c", script).stdout == "text/etc/passwd\n1777\n640\n640\n"
    cp(bz, "-", "box:/srv/tar", stdin=tar(members))
    done = cp(bz, "box:/srv/tar", "-")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        found = {info.name: info for info in archive}
        assert set(found) == {"tar", "tar/a", "tar/a/b", "tar/a/b/c", "tar/l", "tar/d"}
        assert archive.extractfile("tar/a/b/c").read() == b"text"
        assert found["tar/l"].linkname == "/etc/passwd"
        assert found["tar/a/b/c"].mode == 0o640
    with tarfile.open(fileobj=io.BytesIO(cp(bz, "box:/srv/tar/a/b/c", "-").stdout)) as archive:
        assert archive.getnames() == ["c"]


@pytest.mark.parametrize(
    ("words", "stdin", "says"),
    [
        (("-", "box:/srv"), b"no tar at all", "not a tar"),
        (("-", "box:/srv"), tar([("../x", tarfile.REGTYPE, b"x")]), "leads out of it"),
        (("-", "box:/srv"), tar([("/x", tarfile.REGTYPE, b"x")]), "leads out of it"),
        (("-", "box:/srv"), tar([("x", tarfile.LNKTYPE, b"y")]), "a hard link in the tar"),
        (("-", "box:/srv"), tar([("cut", tarfile.REGTYPE, b"x" * 4096)])[:2000], "not a tar"),
        (("-", "box:/etc/passwd"), tar([]), "cannot copy to '/etc/passwd' in box: not a directory"),
        (("-", "box:/no/such"), tar([]), "cannot copy to '/no/such' in box: no such file or directory"),
        (("box:/no/such", "-"), b"", "cannot copy '/no/such' out of box: no such file or directory"),
        (("-", "-"), b"", "expected NAME:PATH TARGET"),
    ],
)
def test_a_tar_that_cannot_be_is_one_line(bz, words, stdin, says):
    done = cp(bz, *words, stdin=stdin)
    assert (done.returncode, done.stdout) == (1, b"")
    assert says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert bz.bz("exec", "box", "sh", "-c", "test ! -e /x; test ! -e /srv/x").returncode == 0


def test_a_link_that_leads_out_is_not_copied_out(bz, tmp_path):
    bz.bz("exec", "box", "sh", "-c", "mkdir /srv/bad && ln -s /etc/shadow /srv/bad/link")
    done = bz.bz("cp", "box:/srv/bad", str(tmp_path / "bad"), check=1)
    assert "a link leads out of the tree" in done.stderr
    assert not (tmp_path / "bad/link").is_symlink()


def test_a_shell_reads_what_it_is_given(bz):
    assert bz.bz("shell", "-e", "X=1", "box", input="echo $X $((6 * 7))\n").stdout == "1 42\n"
    assert bz.bz("shell", "box", input="exit 3\n", check=3).stdout == ""


def test_processes_and_counters_are_the_guests(bz):
    assert "sleep 1000" in bz.bz("top", "box").stdout
    assert bz.bz("top", "box", "-o", "cmd").stdout.split()[0] == "CMD"
    commands = [row["command"] for row in json.loads(bz.bz("top", "--json", "box").stdout)]
    assert "sleep 1000" in commands
    (used,) = json.loads(bz.bz("stats", "--json").stdout)
    assert used["id"] == "box"
    assert used["cpu_s"] is None or used["cpu_s"] > 0
    assert (used["cpu_percent"] is None) == (used["cpu_s"] is None)
    assert bz.bz("stats", "box").stdout.splitlines()[1].split()[0] == "box"


def test_a_listing_is_a_table_json_or_ids(bz):
    (row,) = json.loads(bz.bz("ps", "--json").stdout)
    assert (row["id"], row["status"], row["namespace"]) == ("box", "running", "")
    assert bz.bz("ps", "-q", "-a").stdout == "box\n"
    assert bz.bz("ps").stdout.split()[:2] == ["ID", "STATUS"]
    assert json.loads(bz.bz("port", "--json", "box").stdout) == []
    assert bz.bz("port", "bo").stdout == ""


def test_what_becomes_of_a_container_is_told_as_it_happens(bz):
    watching = subprocess.Popen(
        bz.command("events", "--json", program=BZ), env={}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert event(watching) == ("box", "running")
        bz.bz("pause", "box")
        assert event(watching) == ("box", "paused")
        bz.bz("unpause", "box")
        assert event(watching) == ("box", "running")
        bz.bz("run", "--network", "none", "--name", "other", "--", "true")
        bz.bz("rm", "other")
        told = []
        while told[-1:] != [("other", "removed")]:
            told.append(event(watching))
        assert {id for id, _ in told} == {"other"}
    finally:
        watching.kill()
        watching.communicate()


def event(watching):
    """The next one: (id, status)."""
    found = json.loads(line_of(watching.stdout.fileno()))
    return found["id"], found["status"]


def line_of(fd):
    """The next line, byte by byte: what follows is for the next call."""
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([fd], [], [], DEADLINE_S)[0], "nothing was told"
        line += os.read(fd, 1)
    return line


@pytest.mark.parametrize("verb", ["exec", "shell", "top", "stats", "port", "logs", "stop", "wait", "rm"])
def test_an_unknown_name_is_one_line(bz, verb):
    words = ["nobody", "true"] if verb == "exec" else ["nobody"]
    done = bz.bz(verb, *words, check=125 if verb in ("exec", "shell") else 1)
    assert "nobody" in done.stderr
    assert len(done.stderr.splitlines()) == 1
