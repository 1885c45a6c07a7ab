"""The flight recorder: every line once, in order, whole; and whatever is done to them afterwards is found."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bufferzone import recorder
from bufferzone.config import Settings
from bufferzone.recorder import chain, journal

WRITE = """
import sys
from bufferzone.recorder.journal import Journal
for number in range(int(sys.argv[3])):
    Journal(sys.argv[1], sys.argv[2]).note("count", number=number)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Ten records."""
    place = tmp_path / "records"
    for number in range(10):
        journal.Journal(str(place), "box").note("count", number=number)
    return place


def write(place: Path, times: int) -> None:
    for _ in range(times):
        journal.Journal(str(place), "box").note("count")


def newest(place: Path) -> Path:
    return place / journal.NEWEST


def fault(place: Path, wanted: str = "") -> str:
    return chain.verify(str(place), wanted).fault


def change(place: Path, work) -> str:
    """The fault after `work` on the list of lines."""
    lines = newest(place).read_text().splitlines(keepends=True)
    newest(place).write_text("".join(work(lines)))
    return fault(place)


def test_what_was_written_is_read_and_nobody_else_may(place: Path) -> None:
    found = chain.verify(str(place))
    assert (found.lines, found.seq, found.fault) == (10, 10, "")
    values = [json.loads(line) for _, line in chain.lines(str(place))]
    assert [value["number"] for value in values] == list(range(10))
    assert {value["id"] for value in values} == {"box"}
    assert values[0]["prev"] == journal.NOTHING
    for path in (place, *place.iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_nothing_recorded_is_nothing_wrong(tmp_path: Path) -> None:
    assert chain.verify(str(tmp_path / "none")) == chain.Verified(lines=0, seq=0, hash="", fault="")


def test_an_edited_line_is_found(place: Path) -> None:
    def edit(lines):
        return [*lines[:4], lines[4].replace('"number": 4', '"number": 5'), *lines[5:]]

    assert change(place, edit) == "records.jsonl:5: it was changed: its hash is another"


def test_an_edited_line_with_a_hash_of_its_own_is_found_at_the_next(place: Path) -> None:
    def edit(lines):
        value = json.loads(lines[4])
        head = journal.Head(seq=4, hash=value["prev"], first=1)
        forged, _ = journal._line(head, "count", "box", {"number": 7})
        return [*lines[:4], forged.decode(), *lines[5:]]

    assert "records.jsonl:6: the line before it is another" in change(place, edit)


@pytest.mark.parametrize("at", [0, 3, 8])
def test_a_line_that_was_taken_out_is_found(place: Path, at: int) -> None:
    said = change(place, lambda lines: [*lines[:at], *lines[at + 1 :]])
    assert f"records.jsonl:{at + 1}: line {at + 1} is not here, but {at + 2}" in said


def test_two_lines_that_changed_places_are_found(place: Path) -> None:
    said = change(place, lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]])
    assert "records.jsonl:3: line 3 is not here, but 4" in said


def test_a_line_that_is_there_twice_is_found(place: Path) -> None:
    assert "line 4 is not here, but 3" in change(place, lambda lines: [*lines[:3], lines[2], *lines[3:]])


@pytest.mark.parametrize("kept", [0, 5, 9])
def test_lines_cut_off_the_end_are_found(place: Path, kept: int) -> None:
    assert "says that line 10 is the last" in change(place, lambda lines: lines[:kept])


def test_a_line_that_was_cut_is_found(place: Path) -> None:
    os.truncate(newest(place), newest(place).stat().st_size - 7)
    assert fault(place).startswith("records.jsonl:10: ")


def test_a_file_that_is_gone_and_a_head_that_is_gone_are_found(place: Path) -> None:
    head = (place / journal.HEAD).read_text()
    (place / journal.HEAD).write_text("{}")
    assert fault(place) == "head.json: head.json is none"
    (place / journal.HEAD).write_text(head)
    newest(place).unlink()
    assert "lines were cut off" in fault(place)


def test_a_journal_that_was_made_anew_lacks_a_hash_that_was_kept(place: Path, tmp_path: Path) -> None:
    kept = journal.read_head(str(place)).hash
    assert fault(place, kept) == ""
    other = tmp_path / "other"
    for number in range(12):
        journal.Journal(str(other), "box").note("count", number=number)
    assert "no line has the hash" in fault(other, kept)


def test_it_is_bounded_and_what_is_left_is_whole(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST_BYTES", 1000)
    for number in range(200):
        journal.Journal(str(place), "box").note("count", number=number)
    assert len(chain.files(str(place))) == journal.KEEP + 1
    found = chain.verify(str(place))
    assert (found.seq, found.fault) == (210, "")
    assert found.lines < 60
    oldest = Path(chain.files(str(place))[0])
    oldest.unlink()
    assert "is not here" in fault(place)


def test_what_somebody_says_without_end_is_cut(place: Path) -> None:
    journal.Journal(str(place), "box").note("failure", reason="x" * (1 << 20), more=["y"] * 1000)
    *_, (_, last) = chain.lines(str(place))
    assert len(last) < 4096
    many = {f"key{number}": "z" * 1024 for number in range(64)}
    journal.Journal(str(place), "box").note("failure", **many)
    *_, (_, last) = chain.lines(str(place))
    assert json.loads(last)["left_out"] > 60000
    assert fault(place) == ""


def test_text_that_is_no_text_is_one_line(place: Path) -> None:
    journal.Journal(str(place), "box").note("failure", reason='a\n"}\udcff\x1b\u2028')
    assert fault(place) == ""


def test_several_processes_make_one_chain(place: Path) -> None:
    environment = {"PYTHONPATH": str(Path(recorder.__file__).parents[2])}
    words = [sys.executable, "-c", WRITE, str(place)]
    writers = [subprocess.Popen([*words, f"box{n}", "50"], env=environment) for n in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    found = chain.verify(str(place))
    assert (found.lines, found.fault) == (160, "")


@pytest.mark.parametrize("half", [b"", b'{"seq": 12, "ti'])
def test_a_writer_that_was_killed_in_the_middle_leaves_a_chain_that_goes_on(place: Path, half: bytes) -> None:
    head = place / journal.HEAD
    before = head.read_bytes()
    journal.Journal(str(place), "box").note("its-head-is-not-written")
    head.write_bytes(before)
    with newest(place).open("ab") as file:
        file.write(half)
    journal.Journal(str(place), "box").note("next")
    found = chain.verify(str(place))
    assert (found.fault, found.lines, found.seq) == ("", 12, 12)


def test_a_writer_that_was_killed_while_files_turn_over_leaves_nothing_wrong(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MOST_BYTES", 1)  # each line begins a file
    monkeypatch.setattr(journal, "KEEP", 2)
    with monkeypatch.context() as killed:
        killed.setattr(os, "unlink", lambda path: sys.exit("killed"))
        with pytest.raises(SystemExit):
            write(place, 5)
    assert fault(place) == ""
    journal.Journal(str(place), "box").note("next")
    assert fault(place) == ""
    assert len(chain.files(str(place))) == 3


def test_a_disk_that_is_full_loses_the_line_and_leaves_no_part_of_it(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (newest(place).stat().st_size + 20, before[1]))
    try:
        journal.Journal(str(place), "box").note("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "the flight recorder did not write lost" in capfd.readouterr().err
    journal.Journal(str(place), "box").note("kept")
    assert (chain.verify(str(place)).lines, fault(place)) == (11, "")


def test_without_the_setting_nothing_is_imported(tmp_path: Path) -> None:
    source = str(Path(recorder.__file__).parents[2])
    program = (
        f"import sys; sys.path.insert(0, {source!r})\n"
        "from bufferzone import config, recorder\n"
        f"made = recorder.of(config.Settings(image_store='{tmp_path}/images'), 'box')\n"
        "made.note('event'); print(type(made).__name__, 'bufferzone.recorder.journal' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "Silent False\n"
    assert os.listdir(tmp_path) == []
    on = recorder.of(Settings(image_store=f"{tmp_path}/images", recorder=True), "box")
    on.note("event")
    assert os.listdir(tmp_path) == ["records"]
