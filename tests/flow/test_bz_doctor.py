"""bz doctor finds out by doing, and names what to do."""

from __future__ import annotations

import json

import pytest

from flow.cli import SETTINGS, Cli, needs_host

pytestmark = needs_host


@pytest.fixture
def doctor(tmp_path):
    made = []

    def run(settings=SETTINGS, *words, check):
        cli = Cli(tmp_path, f'{settings}\nimage_store = "{tmp_path}/images"')
        made.append(cli)
        return cli.bz("doctor", *words, check=check)

    yield run
    for cli in made:
        assert [name for name in cli.left() if not name.startswith("kvm")] == []
        cli.close()


def test_a_sandbox_without_a_wall_is_found_by_booting_one(doctor):
    found = {row["check"]: row for row in json.loads(doctor(SETTINGS, "--json", check=1).stdout)}
    assert found["sandbox"]["level"] == "ok"
    assert (found["wall"]["level"], found["wall"]["fix"]) == ("fail", 'remove vmm = "host" from the settings')
    assert "MiB free" in found["space"]["says"]


def test_a_sandbox_that_does_not_start_is_a_finding_with_what_to_do(doctor):
    done = doctor(f"{SETTINGS}\nkvm = 'sometimes'", check=1)
    assert "fail" in done.stdout + done.stderr
    assert "kvm" in done.stdout + done.stderr
