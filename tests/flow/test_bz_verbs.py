"""What bz does with containers that run: files, a shell, processes, counters, ports, events; and what it
refuses."""

from __future__ import annotations

import json
import os
import select
import subprocess

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
        (("box:/no/such", "/tmp/x-of-bz"), "no such file or directory"),
        (("/no/such", "box:/tmp"), "cannot read '/no/such'"),
        (("box:/a", "box:/b"), "expected NAME:PATH TARGET"),
        (("/a", "/b"), "expected NAME:PATH TARGET"),
        (("-", "box:/b"), "expected NAME:PATH TARGET"),
        (("nobody:/a", "/tmp/x-of-bz"), "does not exist"),
        (("box:", "/tmp/x-of-bz"), "expected NAME:PATH, got box:"),
    ],
)
def test_what_cannot_be_copied_is_one_line(bz, words, says):
    done = bz.bz("cp", *words, check=1)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not os.path.exists("/tmp/x-of-bz")


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
