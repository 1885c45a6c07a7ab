"""Logs of engines, as `bz logs` reads them."""

from __future__ import annotations

import json

import pytest

from bufferzone.cli.bz import engine_logs

CRI = b"2026-01-01T00:00:00.000000001+00:00 stdout F one\n2026-01-01T00:00:00Z stderr P par\n"


def test_podmans_log_lies_in_the_bundle_and_its_lines_come_as_they_were_written(tmp_path):
    (tmp_path / "ctr.log").write_bytes(CRI + b"2026-01-01T00:00:00Z stderr F t\nhalf")
    log = engine_logs.find("/run/x/box", str(tmp_path), "")
    assert list(log.read()) == [(1, b"one\n"), (2, b"par"), (2, b"t\n")]
    with open(tmp_path / "ctr.log", "ab") as file:
        file.write(b" of it\n")
    assert list(log.read()) == [(1, b"\n")]  # no such form: an empty line


def test_dockers_log_is_one_object_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_logs, "_DOCKER", str(tmp_path))
    (tmp_path / "box").mkdir()
    lines = [{"log": "a\n", "stream": "stdout"}, {"log": "b", "stream": "stderr"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "box/box-json.log").write_text(text + "no object\n")
    found = list(engine_logs.find("/run/x/box", "/nowhere", "moby").read())
    assert found == [(1, b"a\n"), (2, b"b"), (1, b"no object\n")]


@pytest.mark.parametrize(("uid", "there"), [("u", True), ("..", False), ("u/../u", False)])
def test_a_pods_log_is_the_kubelets_newest(tmp_path, monkeypatch, uid, there):
    monkeypatch.setattr(engine_logs, "_PODS", str(tmp_path / "pods"))
    place = tmp_path / "pods" / "default_web_u" / "nginx"
    place.mkdir(parents=True)
    (place / "0.log").write_bytes(b"")
    (place / "10.log").write_bytes(CRI)
    (place / "9.log").write_bytes(b"")
    names = {"sandbox-namespace": "default", "sandbox-name": "web", "container-name": "nginx"}
    annotations = {
        f"io.kubernetes.cri.{name}": value for name, value in {**names, "sandbox-uid": uid}.items()
    }
    spec = {
        "ociVersion": "1.0.2",
        "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "annotations": annotations,
    }
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(spec))
    log = engine_logs.find("/run/x/box", str(tmp_path), "k8s.io")
    assert (log is not None) == there
    if log is not None:
        assert next(log.read()) == (1, b"one\n")
