"""How `start` answers each containerd, and what `-info` tells."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bufferzone import __version__
from bufferzone.shim import address
from bufferzone.shim.arguments import parse
from bufferzone.shim.bootstrap import BootstrapParams, BootstrapResult, Caller
from bufferzone.shim.info import RuntimeInfo
from bufferzone.wire.proto import Any_

PROGRAM = str(Path(__file__).parents[2] / "src/bufferzone/shim/__main__.py")
ADDRESS = "unix:///run/containerd/s/0123"


@pytest.fixture
def caller(monkeypatch):
    monkeypatch.delenv("TTRPC_ADDRESS", raising=False)
    arguments = parse(["-namespace", "k8s.io", "-id", "one", "start"])
    return lambda told: Caller(told, arguments)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        Any_(type_url="containerd.runc.v1.Options", value=b"\x08\x01").encode(),
        BootstrapParams(instance_id="another", namespace="k8s.io").encode(),
        b"\xff\xff\xff",
    ],
)
def test_who_writes_options_or_nothing_gets_a_plain_address(caller, told):
    assert caller(told).answer(ADDRESS.removeprefix("unix://")) == ADDRESS.encode()


def test_who_writes_its_parameters_gets_a_result_with_the_newer_api(caller):
    told = BootstrapParams(instance_id="one", namespace="k8s.io").encode()
    answer = BootstrapResult.decode(caller(told).answer(ADDRESS.removeprefix("unix://")))
    assert answer == BootstrapResult(version=3, address=ADDRESS, protocol="ttrpc")


def test_events_go_where_the_environment_says_else_where_the_parameters_do(caller, monkeypatch):
    import os

    told = BootstrapParams(instance_id="one", namespace="k8s.io", containerd_ttrpc_address="/there")
    caller(told.encode())
    assert os.environ["TTRPC_ADDRESS"] == "/there"
    monkeypatch.setenv("TTRPC_ADDRESS", "/here")
    caller(told.encode())
    assert os.environ["TTRPC_ADDRESS"] == "/here"


def test_info_tells_version_and_features_and_nothing_else():
    command = [sys.executable, "-IS", PROGRAM, "-info"]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=120, check=True)
    info = RuntimeInfo.decode(done.stdout)
    assert done.stderr == b""
    assert (info.name, info.version.version) == ("io.containerd.bufferzone.v2", __version__)
    assert "network" in json.loads(info.features.value)["linux"]["namespaces"]


def test_a_socket_that_nobody_serves_is_one_that_does_not_answer(tmp_path):
    path = tmp_path / "sock"
    assert not address.answers(str(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert not address.answers(str(path))
        listener.listen(1)
        assert address.answers(str(path))
    assert not address.answers(str(path))


def test_a_socket_of_which_nothing_can_be_told_is_no_free_one(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        address.answers(str(loop))
