"""The pure parts of `bz bench`: percentiles, memory tables of the kernel, bars, report, command line."""

from __future__ import annotations

import json
import time

import pytest

from bufferzone.bench import figures, measure, memory, report, touched
from bufferzone.bench.bars import MET, NOT_MEASURED, NOT_MET, bars
from bufferzone.bench.measure import Column
from bufferzone.bench.runtimes import COLD, FLOOR, NAMES, POOL, WARM
from bufferzone.cli.bz import bench
from bufferzone.cli.flags import parse
from bufferzone.errors import UsageError

MIB = 1 << 20
MACHINE = {"cpus": 2, "cpu": "a CPU", "memory_mib": 4096, "kernel": "6.1", "load_before": 0.25}
OPTIONS = {"runs": 3}

ROLLUP = """55a000000000-7ffd00000000 ---p 00000000 00:00 0                          [rollup]
Rss:               10240 kB
Pss:                6144 kB
Pss_Anon:           4096 kB
Pss_File:           1024 kB
Pss_Shmem:          1024 kB
"""
SMAPS = """7f0000000000-7f0020000000 rw-s 00000000 00:3f 2                          /memory
Size:             524288 kB
Rss:               40960 kB
Pss:               40000 kB
7f0020000000-7f0020001000 rw-p 00000000 00:00 0
Rss:                   4 kB
VmFlags: rd wr mr mw me ac
"""


def column(name: str, **samples: list[float]) -> Column:
    made = Column(name)
    made.samples.update(samples)
    return made


def verdicts(*columns: Column) -> dict[str, str]:
    return {bar["bar"]: bar["verdict"] for bar in bars({column.name: column for column in columns})}


def test_a_percentile_is_a_value_that_was_measured():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [figures.percentile(values, percent) for percent in (0, 20, 50, 99, 100)] == [1, 1, 3, 5, 5]
    assert figures.percentile(list(range(1, 201)), 99) == 198


def test_a_percentile_of_nothing_is_an_error_and_its_summary_is_empty():
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 50)
    assert figures.summary([]) == {"n": 0}


def test_a_ratio_with_something_unknown_is_unknown():
    assert figures.ratio(3.0, 2.0) == 1.5
    assert [figures.ratio(None, 2.0), figures.ratio(2.0, None), figures.ratio(2.0, 0.0)] == [None] * 3


def test_a_rollup_is_read_in_bytes_and_its_first_line_is_none():
    numbers = memory.parse_rollup(ROLLUP)
    assert numbers == {
        "Rss": 10 * MIB,
        "Pss": 6 * MIB,
        "Pss_Anon": 4 * MIB,
        "Pss_File": MIB,
        "Pss_Shmem": MIB,
    }


def test_the_resident_part_of_each_mapping_is_found_beside_its_name():
    areas = memory.parse_areas(SMAPS)
    assert [resident for _, resident in areas] == [40 * MIB, 4096]
    assert areas[0][0].endswith(" /memory")


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (b"/usr/bin/qemu-system-x86_64\0-name\0guest=virtiofsd\0", "QEMU"),
        (b"/usr/lib/qemu/virtiofsd\0--fd=3\0", "virtiofsd"),
        (b"/usr/bin/python3\0-I\0-S\0-Xutf8\0/x/src/bufferzone/shim/__main__.py\0-id\0a\0", "shim"),
        (b"/usr/bin/python3\0-ISXutf8\0/run/b/bufferzone\0--root\0/r\0run\0", "waiter"),
        (b"runsc-sandbox\0--root=/r\0", "runsc-sandbox"),
        (b"runsc-gofer\0--root=/r\0", "runsc-gofer"),
        (b"sleep\x00100000\0", "container"),
        (b"", "other"),
    ],
)
def test_a_process_is_known_by_its_command_line(command, role):
    assert memory.role_of(command) == role


def test_one_more_sandbox_is_what_many_added_shared_between_them():
    def usage(role: str, mib: int) -> memory.Usage:
        return memory.Usage(1, role, {"Pss": mib * MIB, "Pss_Anon": mib * MIB})

    first = memory.Total([usage("QEMU", 100), usage("shim", 12)], 8 * MIB)
    last = memory.Total([usage("QEMU", 90)] * 5 + [usage("shim", 10)] * 5, 40 * MIB)
    assert memory.one_more(first, last, 4) == {"pss": 97.0, "vmm": 87.5, "not_vmm": 9.5, "unmapped": 8.0}
    assert memory.by_role(first, last, 4)["shim"] == {
        "processes": 1.0,
        "pss": 9.5,
        "anonymous": 9.5,
        "file": 0.0,
        "shared": 0.0,
    }


def test_what_was_not_measured_meets_no_bar():
    assert set(verdicts().values()) == {NOT_MEASURED}


def test_a_bar_is_met_up_to_its_limit_and_not_a_thousandth_above():
    floor, cold = column(FLOOR, start=[100.0]), column(COLD, start=[600.0])
    met = verdicts(floor, cold, column(WARM, start=[150.0]))
    missed = verdicts(floor, cold, column(WARM, start=[150.1]))
    assert met["warm start to first byte, against the floor"] == MET
    assert missed["warm start to first byte, against the floor"] == NOT_MET
    assert missed["warm start to first byte, against cold"] == NOT_MET


def test_pool_exec_and_state_are_compared_with_runsc():
    runsc = column("runsc", start=[140.0], exec=[40.0], state=[30.0])
    found = verdicts(runsc, column(POOL, start=[139.0]), column(WARM, exec=[81.0], state=[36.0]))
    assert found["pool start, against runsc run"] == MET
    assert found["exec, against runsc exec"] == NOT_MET
    assert found["state, against runsc state"] == MET


def test_growth_to_fewer_than_fifty_says_nothing_about_fifty():
    warm = column(WARM, start=[1.0])
    warm.growth = {"sandboxes": 49, "ratio": 1.0, "touched": {"sandboxes": 50, "ratio": 1.6}}
    warm.memory = {"pss": 110.4, "not_vmm": 25.0}
    found = verdicts(warm)
    assert found["start of sandbox 50, against the first"] == NOT_MEASURED
    assert found["the same, each on memory that was touched before"] == NOT_MET
    assert found["one more idle warm sandbox, PSS of all host processes"] == NOT_MET
    assert found["one more idle warm sandbox, PSS without the VMM"] == MET


def test_phases_are_medians_of_durations_and_ends_in_the_order_they_came():
    timelines = [[("a", 10.0), ("b", 30.0)], [("a", 12.0), ("b", 20.0)], [("a", 11.0), ("b", 40.0)]]
    assert report.phases(timelines) == [["a", 11.0, 11.0], ["b", 20.0, 30.0]]


def test_a_guests_memory_that_nobody_maps_counts_against_the_sandboxes_in_a_gib():
    assert report.per_gib({"pss": 96.0, "unmapped": 32.0}) == 8.0
    assert report.per_gib({}) is None


def full_report() -> dict[str, object]:
    warm = column(WARM, start=[500.0, 600.0, 550.0], exec=[50.0])
    warm.memory, warm.rates = {"pss": 100.0, "vmm": 80.0, "not_vmm": 20.0, "unmapped": 0.0}, {1: 2.0}
    warm.timelines = [[("prepare", 10.0), ("wake the guest", 200.0)]]
    warm.roles = {"QEMU": {"processes": 1.0, "pss": 80.0, "anonymous": 40.0, "file": 0.0, "shared": 40.0}}
    absent = Column("runsc")
    absent.reason = "not installed (apt-get install runsc)"
    return report.build(MACHINE, OPTIONS, {WARM: "0.1.0"}, {WARM: warm, "runsc": absent})


def test_the_report_is_json_and_names_what_was_not_measured():
    found = json.loads(json.dumps(full_report()))
    assert found["version"] == report.VERSION
    assert found["runtimes"][WARM]["ms"]["start"] == {"n": 3, "p50": 550.0, "p99": 600.0, "min": 500.0}
    assert found["runtimes"]["runsc"]["measured"] is False
    assert len(found["bars"]) == 9


def test_the_text_has_a_column_for_what_was_measured_and_a_line_for_what_was_not():
    text = report.text(full_report(), profile=False)
    (row,) = (line for line in text.splitlines() if line.startswith("start to first byte, ms"))
    assert row.split()[-3:] == ["550", "/", "600"]
    assert "not measured: runsc: not installed" in text
    assert "wake the guest" not in text
    assert max(len(line) for line in text.splitlines()) < 160


def test_the_profile_shows_phases_and_processes():
    text = report.text(full_report(), profile=True)
    assert "wake the guest" in text
    assert "QEMU" in text


def order(*words: str) -> dict[str, object]:
    return bench.order_of(parse(bench.FLAGS, words, interspersed=True)[0])


def test_the_command_and_the_program_know_the_same_runtimes():
    assert bench.NAMES == NAMES


def test_quick_changes_what_was_not_said():
    assert order("--quick")["runs"] == 3
    assert order("--quick", "--runs", "7")["runs"] == 7
    assert order()["sandboxes"] == 50


@pytest.mark.parametrize(
    "words",
    [("--only", "docker"), ("--runs", "0"), ("--sandboxes", "-1"), ("--plot", "/nonexistent/picture.png")],
)
def test_a_wish_that_cannot_be_met_is_refused_before_anything_starts(words):
    with pytest.raises(UsageError):
        order(*words)


def test_the_first_and_the_last_start_are_medians_of_three_where_there_are_six():
    found = measure.first_and_last([500.0, 900.0, 510.0, 600.0, 700.0, 990.0])
    assert (found["first"], found["last"], found["ratio"]) == (510.0, 700.0, 1.37)
    assert measure.first_and_last([400.0, 600.0])["ratio"] == 1.5


def test_a_reserve_gives_back_what_it_touched_piece_by_piece(monkeypatch):
    monkeypatch.setattr(touched, "PIECE", 4 * memory.MIB)
    reserve = touched.Reserve(3, time.monotonic() + 60)
    assert (len(reserve), len(reserve.costs)) == (3, 3)
    reserve.give()
    assert len(reserve) == 2
    reserve.close()
    assert len(reserve) == 0


def test_a_reserve_takes_no_more_than_three_quarters_of_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(touched, "PIECE", memory.MIB)
    monkeypatch.setattr(memory, "available", lambda: 4 * memory.MIB)
    reserve = touched.Reserve(10, time.monotonic() + 60)
    assert len(reserve) == 3
    reserve.close()
