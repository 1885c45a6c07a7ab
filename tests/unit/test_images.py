"""References as people write them, what a configuration may say, files through layers, skopeo's words."""

from __future__ import annotations

import os

import pytest

from bufferzone.errors import HostError, UsageError
from bufferzone.images import config, layered, reference, skopeo

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.19", "docker.io/library/alpine:3.19"),
        ("python/x", "docker.io/python/x:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("ghcr.io/x/y:tag", "ghcr.io/x/y:tag"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("docker://quay.io/a/b", "quay.io/a/b:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"ghcr.io/x/y:tag@{DIGEST}", f"ghcr.io/x/y@{DIGEST}"),
    ],
)
def test_a_name_is_completed_as_docker_completes_it(text, name):
    found = reference.parse(text)
    assert (found.kind, found.name, found.source) == (reference.REGISTRY, name, f"docker://{name}")
    assert found.fixed == ("@" in text)


def test_only_a_registry_on_this_machine_may_speak_http():
    plain = [reference.parse(text).plain for text in ("127.0.0.1:5/x", "localhost/x", "ghcr.io/x", "x")]
    assert plain == [True, True, False, False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Alpine",
        "x:y:z",
        "a b",
        "x@sha256:12",
        "x@md5:" + "ab" * 16,
        "ghcr.io/",
        "--help",
        "x:",
        "oci:",
        "a//b",
    ],
)
def test_what_is_no_reference_is_a_usage_error(text):
    with pytest.raises(UsageError):
        reference.parse(text)


def test_a_file_that_changed_is_another_image(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    first = reference.parse(f"oci:{tmp_path}:tag")
    assert first.source == f"oci:{tmp_path}:tag"
    assert first.fixed
    assert first == reference.parse(f"oci:{tmp_path}:tag")
    (tmp_path / "index.json").write_text('{"a":1}')
    assert reference.parse(f"oci:{tmp_path}:tag").name != first.name
    with pytest.raises(UsageError, match="no such image"):
        reference.parse(f"oci-archive:{tmp_path}/none")


def test_a_path_is_a_directory(tmp_path):
    assert reference.parse(str(tmp_path)).kind == reference.DIRECTORY


def test_a_configuration_is_read_and_one_of_other_types_refused():
    blob = {
        "config": {"Cmd": ["sh"], "Env": ["A=b", "nothing"], "Volumes": {"/v": {}}, "StopSignal": "SIGINT"}
    }
    found = config.read(blob)
    assert (found.cmd, found.env, found.volumes) == (("sh",), ("A=b",), ("/v",))
    assert (found.stop_signal, found.entrypoint) == ("SIGINT", ())
    for value in ({"Cmd": "sh"}, {"Env": [1]}, {"User": 5}, {"Volumes": ["/x"]}, {"Cmd": ["a\0b"]}, []):
        with pytest.raises(HostError, match="configuration"):
            config.read({"config": value})


@pytest.fixture
def layers(tmp_path):
    """A base with /etc/passwd, and a layer on it, empty."""
    top, base = tmp_path / "top", tmp_path / "base"
    (base / "etc").mkdir(parents=True)
    (base / "etc/passwd").write_text("base")
    top.mkdir()
    return top, base


def look(layers, path="/etc/passwd"):
    return layered.read([str(layer) for layer in layers], path, 100).decode()


def test_a_file_is_the_topmost_layers_that_has_it(layers):
    assert look(layers) == "base"
    (layers[0] / "etc").mkdir()
    assert look(layers) == "base"
    (layers[0] / "etc/passwd").write_text("top")
    assert look(layers) == "top"
    assert look(layers, "/etc/group") == ""


def test_links_lead_nowhere_but_into_the_image(layers, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (layers[0] / "etc").mkdir()
    os.symlink("../../../../../../../../../etc/real", layers[0] / "etc/passwd")
    assert look(layers) == ""
    (layers[1] / "etc/real").write_text("real")
    assert look(layers) == "real"
    os.symlink(str(tmp_path), layers[0] / "out")
    assert look(layers, "/out/secret") == ""
    os.symlink("loop", layers[0] / "loop")
    assert look(layers, "/loop") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes")
def test_what_a_layer_removed_is_not_found(layers):
    (layers[0] / "etc").mkdir()
    os.mknod(layers[0] / "etc/passwd", 0o20000, 0)
    assert look(layers) == ""
    os.unlink(layers[0] / "etc/passwd")
    os.setxattr(layers[0] / "etc", "trusted.overlay.opaque", b"y")
    assert look(layers) == ""


def test_a_fifo_is_not_read(layers):
    os.unlink(layers[1] / "etc/passwd")
    os.mkfifo(layers[1] / "etc/passwd")
    assert look(layers) == ""


def test_the_last_fatal_record_is_what_skopeo_said():
    said = 'warning\ntime="x" level=fatal msg="reading \\"a\\": manifest unknown"\n'
    assert skopeo.last_words(said) == 'reading "a": manifest unknown'
    assert skopeo.last_words("flag provided\n\n") == "flag provided"
    assert skopeo.last_words("") == ""


def test_the_cause_at_the_end_of_a_long_message_is_told():
    error = skopeo._failure("cannot pull x", "writing blob: " + "0" * 300 + ": duplicate paths\n", 1)
    assert (error.code, error.message.endswith("000: duplicate paths")) == ("pull-failed", True)
    assert len(error.message) < 200
