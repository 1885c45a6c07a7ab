"""What the flight recorder has of containers, through the real verbs and shim, and what `bz log` says."""

from __future__ import annotations

import json
import os
import signal

import pytest

from flow.cli import SETTINGS, Cli, needs_host
from vm.leftovers import is_alive

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    made = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{tmp_path}/store/images"\nrecorder = true')
    yield made
    made.close()


def records(bz):
    return [json.loads(line) for line in bz.bz("log", "show", "--json").stdout.splitlines()]


def events(bz, id="one"):
    return [value["event"] for value in records(bz) if value["id"] == id]


def test_the_life_of_a_container_is_a_chain(bz, tmp_path):
    hook = {"path": "/bin/true"}
    volume = {"destination": "/v", "type": "bind", "source": str(tmp_path), "options": ["bind", "ro"]}
    proc = {"destination": "/proc", "type": "proc", "source": "proc"}
    bz.create("one", bz.bundle("pause", hooks={"createRuntime": [hook]}, mounts=[proc, volume]))
    bz("start", "one")
    bz("exec", "one", "true", "argument")
    bz("pause", "one")
    bz("resume", "one")
    bz("delete", "--force", "one")
    told = events(bz)
    life = [
        "hooks",
        "volumes",
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        "exit",
        "delete",
        "sandbox-end",
    ]
    assert [event for event in told if event in life] == life
    assert "sandbox" in told
    found = {value["event"]: value for value in records(bz)}
    assert f"{tmp_path} ro" in found["volumes"]["sources"]
    assert (found["hooks"]["stage"], found["hooks"]["paths"]) == ("createRuntime", ["/bin/true"])
    assert (found["exit"]["exit_status"], found["delete"]["exit_status"]) == (137, 137)
    assert "argument" not in bz.bz("log", "show", "--json").stdout
    assert bz.bz("log", "verify").stdout.endswith(f"the last is {len(records(bz))}\n")
    assert "createRuntime" in bz.bz("log", "show", "--id", "one").stdout
    assert bz.bz("log", "show", "--id", "two").stdout == ""


def test_a_line_that_was_changed_ends_verify_with_1(bz, tmp_path):
    bz.create("one", bz.bundle("pause"))
    bz("delete", "--force", "one")
    kept = bz.bz("log", "head").stdout.split()[1]
    assert bz.bz("log", "verify", "--head", kept).returncode == 0
    path = tmp_path / "store" / "records" / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0].replace("one", "two"), *lines[1:]]))
    said = bz.bz("log", "verify", check=1).stdout
    assert "records.jsonl:1: it was changed" in said


def test_failures_are_recorded_before_and_after_a_sandbox_is_there(bz):
    bz.odd_agent("sys.exit(3)")
    bz.create("one", bz.bundle("pause"), check=1)
    assert "failure" in events(bz)
    assert "failed" in next(v["reason"] for v in records(bz) if v["event"] == "failure")
    annotations = {"bufferzone.kvm": "require"}
    bz.create("two", bz.bundle("pause", name="second", annotations=annotations), check=1)
    (told,) = [value for value in records(bz) if value["id"] == "two"]
    assert (told["event"], "KVM" in told["reason"]) == ("start-failed", True)
    assert bz.bz("log", "verify").returncode == 0


def test_the_end_of_a_vm_that_was_killed_is_recorded(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    agent = bz.helper("one")
    os.kill(agent, signal.SIGKILL)
    bz("delete", "--force", "one")
    assert not is_alive(agent)
    reason = next(value["reason"] for value in records(bz) if value["event"] == "failure")
    assert "was killed (SIGKILL)" in reason


def test_a_request_that_is_refused_is_recorded(bz):
    bz.create("one", bz.bundle("no-such-program"), check=None)
    bz("start", "one", check=None)
    assert "refused" in events(bz)


@pytest.mark.parametrize("annotation", ["true", ""])
def test_one_container_is_recorded_where_it_asks_for_it(tmp_path, annotation):
    bz = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{tmp_path}/store/images"')
    annotations = {"bufferzone.recorder": annotation} if annotation else {}
    try:
        bz.create("one", bz.bundle("pause", annotations=annotations))
        bz("delete", "--force", "one")
        assert bool(records(bz)) is bool(annotation)
    finally:
        bz.close()


def test_no_annotation_ends_it(bz):
    said = bz.create("one", bz.bundle("pause", annotations={"bufferzone.recorder": "false"}), check=1)
    assert "bufferzone.recorder: this host records what becomes of its containers" in said
