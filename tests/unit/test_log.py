"""How a failure is told."""

from __future__ import annotations

import json
import os
import re

import pytest

from bufferzone import log
from bufferzone.errors import NotFoundError, SpecError


@pytest.fixture
def told(capfd):
    """Report an error and return what stderr got."""

    def report(error, **more):
        log.report(error, **more)
        return capfd.readouterr().err

    return report


def test_the_json_log_is_one_object_with_logrus_fields(told, tmp_path):
    path = tmp_path / "log.json"
    told(NotFoundError('container "x" does not exist', hint="look"), path=str(path), form="json")
    found = json.loads(path.read_text())
    assert list(found) == ["level", "msg", "time"]
    assert found["level"] == "error"
    assert found["msg"] == 'container "x" does not exist (hint: look)'
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["time"])


def test_stderr_gets_one_plain_line_too(told, tmp_path):
    text = told(SpecError("config.json: x\ny"), path=str(tmp_path / "log"), form="json")
    assert text == "bufferzone: config.json: x y\n"


def test_a_second_failure_is_a_second_line(told, tmp_path):
    path = tmp_path / "log"
    for message in ("first", "second"):
        told(SpecError(message), path=str(path), form="json")
    assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == ["first", "second"]


def test_the_text_log_is_logrus_text(told, tmp_path):
    path = tmp_path / "log"
    told(SpecError('a "b"'), path=str(path), form="text")
    assert re.fullmatch(r'time="[^"]+" level=error msg="a \\"b\\""\n', path.read_text())


def test_json_without_a_log_goes_to_stderr(told):
    assert json.loads(told(SpecError("no"), form="json"))["msg"] == "no"


def test_a_bug_of_ours_is_one_line_and_a_traceback_only_for_debug(told):
    with pytest.raises(KeyError) as caught:
        {}["lost"]
    assert told(caught.value) == "bufferzone: internal error: KeyError: 'lost'\n"
    assert "Traceback" in told(caught.value, debug=True)


def test_control_bytes_of_a_guest_never_reach_the_terminal(told):
    assert told(SpecError("a\x1b[2Jb\udc80")) == "bufferzone: a\\x1b[2Jb\\udc80\n"


def test_a_message_without_end_is_cut(told):
    assert len(told(SpecError("x" * 100_000))) < 8192


def test_a_log_that_cannot_be_written_is_mentioned(told, tmp_path):
    text = told(SpecError("why"), path=str(tmp_path / "none" / "log"), form="json")
    assert text.startswith("bufferzone: why (and cannot write the log")
    assert "No such file" in text


def test_an_existing_log_is_appended_to(told, tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    os.chmod(path, 0o600)
    told(SpecError("why"), path=str(path), form="json")
    assert path.read_text().startswith("before\n{")
