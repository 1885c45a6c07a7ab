"""The agent's table of methods: what the protocol has, and nothing else."""

import subprocess
import sys

from bufferzone.wire import agent as wire
from unit.guest_harness import SOURCE

#: in a process of its own: an agent takes the signals of its process
_PROGRAM = f"""
import os, sys
sys.path.insert(0, {SOURCE!r})
from bufferzone.guest.agent import Agent
print(*Agent(os.pipe()[0], "/nowhere", []).methods)
"""


def test_every_method_of_the_protocol_has_a_handler_and_no_other_has():
    command = [sys.executable, "-ISBc", _PROGRAM]
    methods = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(methods) == sorted(wire.METHODS)
