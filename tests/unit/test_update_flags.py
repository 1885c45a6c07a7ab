"""What the flags of `update` become: exactly the keys of linux.resources that they name."""

import json

import pytest

from bufferzone.cli import flags
from bufferzone.cli.oci import update


@pytest.fixture
def sent(monkeypatch):
    requests = []
    monkeypatch.setattr(update.container, "find", lambda root, id: "/state")
    monkeypatch.setattr(
        update.container, "ask", lambda directory, method, request, verb: requests.append(request)
    )

    def run(*words):
        options, rest = flags.parse(update.FLAGS, words, interspersed=True)
        options.root = "/root"
        update.run(options, rest)
        return json.loads(requests[-1].resources.value)

    return run


def test_what_was_named_is_sent_and_nothing_else(sent):
    expected = {"memory": {"limit": 512 << 20}, "cpu": {"quota": -1}, "pids": {"limit": 0}}
    assert sent("--memory", "512m", "--cpu-quota", "-1", "--pids-limit", "0", "one") == expected
    assert sent("--cpu-share", "7", "--memory-swap", "-1", "one") == {
        "cpu": {"shares": 7},
        "memory": {"swap": -1},
    }
