"""Settings from an engine's configuration of one of its runtimes: read, told wrong, told too late."""

from __future__ import annotations

import pytest

from bufferzone import config
from bufferzone.errors import CallerError, HostError
from bufferzone.settings_file import ConfigError
from bufferzone.shim import too_late
from bufferzone.shim.engine_options import EngineOptions, told_to_start
from bufferzone.wire import task
from bufferzone.wire.proto import Any_

URLS = ("runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options", "x/runtimeoptions.v1.Options")


def told(url: str = URLS[0], **values: object) -> Any_:
    return Any_(type_url=url, value=task.RuntimeOptions(**values).encode())


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch):
    monkeypatch.setattr(config, "_also", {})
    monkeypatch.setattr(config, "default_paths", list)


@pytest.mark.parametrize("url", URLS)
def test_settings_in_the_engines_own_file_win(url):
    told_to_start(told(url, config_body=b"vcpus = 3\npool.size = 1\nSystemdCgroup = true\n").encode()).apply()
    assert (config.load().vcpus, config.load().pool_size) == (3, 1)


def test_a_file_that_it_names_wins_over_the_hosts_files(tmp_path, monkeypatch):
    host, own = tmp_path / "host.toml", tmp_path / "own.toml"
    host.write_text("vcpus = 2\nmemory_mib = 256\n")
    own.write_text("vcpus = 4\n")
    monkeypatch.setattr(config, "default_paths", lambda: [str(host)])
    told_to_start(told(config_path=str(own), type_url="whatever").encode()).apply()
    assert (config.load().vcpus, config.load().memory_mib) == (4, 256)
    assert config.load([str(host)]).vcpus == 2


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"\xff\xff\xff",
        Any_(type_url="containerd.runc.v1.Options", value=b"\x0a\x02/x").encode(),
        Any_(type_url=URLS[0], value=b"\xff").encode(),
        told(config_body=b"\xff").encode(),
    ],
)
def test_what_else_is_on_standard_input_is_no_setting(stdin):
    told_to_start(stdin).apply()
    assert config.read_beside() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (told(config_body=b"vcpu = 1\n"), "the engine's options: vcpu: unknown setting"),
        (told(config_body=b"vcpus =\n"), "the engine's options: "),
        (told(config_body=b"vcpus = 99\n"), "the engine's options: vcpus: "),
        (told(config_path="/nonexistent/x.toml"), "/nonexistent/x.toml: No such file or directory"),
    ],
)
def test_what_is_wrong_with_them_is_told_by_whoever_reads_settings(options, words):
    told_to_start(options.encode()).apply()
    with pytest.raises((ConfigError, HostError)) as raised:
        config.load()
    assert raised.value.message.startswith(words)


def test_create_with_settings_that_the_vm_was_not_begun_with_is_refused(tmp_path):
    begun = told(config_body=b"vcpus = 1\n")
    told_to_start(begun.encode()).apply()
    too_late.check(task.CreateTaskRequest(id="c", options=begun))
    too_late.check(task.CreateTaskRequest(id="c", options=Any_(type_url="containerd.runc.v1.Options")))
    too_late.check(task.CreateTaskRequest(id="c"))
    for other in (told(config_body=b"vcpus = 2\n"), told(config_path=str(tmp_path / "own.toml"))):
        with pytest.raises(CallerError, match="the VM of c was begun without the settings of"):
            too_late.check(task.CreateTaskRequest(id="c", options=other))
    with pytest.raises(CallerError, match="malformed"):
        too_late.check(task.CreateTaskRequest(id="c", options=told(config_body=b"\xff")))


def test_a_waiting_vm_is_told_the_same_as_the_start(monkeypatch):
    from bufferzone.shim import pool_start

    EngineOptions("the engine's options", "vcpus = 5").apply()
    words = list(config.read_beside().items())
    monkeypatch.setattr(config, "_also", {})
    pool_start.take_settings({"settings": words})
    assert config.load().vcpus == 5
    assert EngineOptions("the engine's options", "vcpus = 5").was_read()
