"""Sandboxes for those who have code already: an executor, a fixture of pytest, a tool for agents."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap

import pytest

import bufferzone
from bufferzone.adapters import executor as executors
from bufferzone.adapters.executor import RemoteError, SandboxExecutor
from bufferzone.adapters.interpreter import Interpreter
from flow.cli import DEADLINE_S, ROOT, needs_host
from flow.test_library import World

pytestmark = needs_host

FUNCTIONS = """
import os, sys, time

class Mine:
    pass

class MyError(Exception):
    pass

def square(x, *, plus=0):
    print("printed", x)
    return x * x + plus

def everything():
    return [None, True, 1 << 70, 1.5, "é\\ud800", b"\\0\\xff", (1, [2]), {1, 2}, {(1, 2): {"a": ()}}, 1j]

def fail(kind):
    if kind == "builtin":
        raise KeyError("a", 1)
    if kind == "own":
        raise MyError("mine")
    if kind == "exit":
        sys.exit(3)
    if kind == "killed":
        os.kill(os.getpid(), 9)
    if kind == "late":
        time.sleep(1000)
    return Mine()

def forge(text):
    os.write(3, text.encode())
    os._exit(0)

def node():
    return os.uname().nodename
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("adapters"))
    world.store.mkdir()
    yield world
    left = world.left()
    world.close()
    assert left == []


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """A module of functions beside nothing that is installed."""
    place = tmp_path_factory.mktemp("modules")
    (place / "mine_to_call.py").write_text(FUNCTIONS)
    sys.path.insert(0, str(place))
    import mine_to_call

    yield mine_to_call
    sys.path.remove(str(place))
    del sys.modules["mine_to_call"]


@pytest.fixture(scope="module")
def executor(world):
    with SandboxExecutor(max_workers=2, root=world.root) as executor:
        yield executor


def test_functions_are_called_in_sandboxes_and_their_results_come_back(executor, functions):
    assert list(executor.map(functions.square, range(5))) == [0, 1, 4, 9, 16]
    assert executor.submit(functools.partial(functions.square, 3), plus=1).result() == 10
    assert executor.submit(functions.node).result() != os.uname().nodename
    assert executor.submit(functions.everything).result() == functions.everything()
    assert executor.submit(divmod, 7, 2).result() == (3, 1)


def test_an_exception_is_raised_here_and_says_where_it_came_from(executor, functions):
    with pytest.raises(KeyError) as caught:
        executor.submit(functions.fail, "builtin").result()
    assert caught.value.args == ("a", 1)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "in fail" in caught.value.__cause__.traceback
    with pytest.raises(RemoteError) as caught:
        executor.submit(functions.fail, "own").result()
    assert (caught.value.kind, caught.value.code) == ("MyError", "remote-exception")
    with pytest.raises(TypeError, match="a result cannot be a mine_to_call"):
        executor.submit(functions.fail, "object").result()
    with pytest.raises(RemoteError) as caught:
        executor.submit(functions.fail, "exit").result()
    assert caught.value.kind == "SystemExit"


def test_a_function_that_does_not_come_to_its_end_is_told_by_its_verdict(world, functions):
    with SandboxExecutor(max_workers=1, timeout_s=1.5, root=world.root) as executor:
        for kind, code in (("late", "timeout"), ("killed", "signal")):
            with pytest.raises(RemoteError) as caught:
                executor.submit(functions.fail, kind).result()
            assert caught.value.code == code
        assert executor.submit(functions.square, 2).result() == 4


FORGED = """

x
[]
{}
{"value": ["os.system", "x"]}
{"value": {}}
{"value": ["set", [["list", []]]]}
{"kind": "SystemExit", "args": [], "traceback": ""}
{"kind": 1}
"""


@pytest.mark.parametrize("forged", [*FORGED.strip("\n").split("\n"), "", '{"value": ' + "[" * 99999])
def test_what_a_sandbox_forges_is_an_error_and_never_more(executor, functions, forged):
    with pytest.raises(RemoteError) as caught:
        executor.submit(functions.forge, forged).result()
    assert caught.value.code in ("bad-result", "not-sent", "remote-exception")


def test_what_cannot_be_pickled_is_refused_at_once(executor):
    with open(os.devnull) as file:
        for function in (lambda: 1, file.read):
            with pytest.raises(bufferzone.UsageError) as caught:
                executor.submit(function)
            assert caught.value.code == "not-picklable"


def test_a_fresh_sandbox_for_each_call_has_nothing_of_the_last(world, functions):
    with SandboxExecutor(max_workers=1, fresh=True, root=world.root) as executor:
        names = {executor.submit(functions.node).result() for _ in range(2)}
    assert len(names) == 2


def test_the_script_that_is_run_is_where_its_functions_are(world, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from bufferzone.adapters.executor import SandboxExecutor\n"
        "def twice(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        f"    with SandboxExecutor(root={world.root!r}) as executor:\n"
        "        print(executor.submit(twice, 21).result())\n"
    )
    process = world.program(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    # runpy does not put what it runs into sys.modules: this is what `python script.py` has
    assert process.communicate(timeout=DEADLINE_S)[0] in ("42\n", "")


def test_an_interpreter_remembers_until_it_is_ended(world):
    with world.sandbox() as box:
        python = Interpreter(box)
        assert python.run("x = 6\nprint('set')", timeout_s=60).output == "set\n"
        assert python.run("x * 7", timeout_s=60).output == "42\n"
        assert python.run(
            "import subprocess; subprocess.run(['echo', 'child'])", timeout_s=60
        ).output.startswith("child\n")
        failed = python.run("1 / 0", timeout_s=60)
        assert (failed.ok, failed.output.splitlines()[-1]) == (False, "ZeroDivisionError: division by zero")
        late = python.run("while True: pass", timeout_s=0.5)
        assert "more than 0.5 s" in late.lost
        assert python.run("'x' in globals()", timeout_s=60).output == "False\n"
        assert python.run("import os; os._exit(1)", timeout_s=60).lost
        python.close()


def head(world) -> str:
    """What a program needs to be in the world: see `World.program`."""
    return textwrap.dedent(f"""
        import functools, sys
        sys.path.insert(0, {str(ROOT / "src")!r})
        import bufferzone
        from bufferzone.workload import launch, place
        place.parent = lambda: {str(world.store)!r}
        launch.Launch = functools.partial(launch.Launch, shim={world.cli.shim!r})
    """)


def test_a_test_has_a_sandbox_of_its_own(world, tmp_path):
    (tmp_path / "conftest.py").write_text(
        head(world) + f"from bufferzone import state\nstate.runtime_root = lambda flag='': {world.root!r}\n"
    )
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            import pytest

            names = []

            def test_one(sandbox):
                assert sandbox.run(["sh", "-c", "echo $((6 * 7))"]).stdout == "42\\n"
                names.append(sandbox.name)

            @pytest.mark.sandbox(env={"A": "b"}, name="named")
            def test_two(sandbox, make_sandbox):
                assert sandbox.run(["sh", "-c", "echo $A"]).stdout == "b\\n"
                assert sandbox.name == "named" != make_sandbox().name
                assert sandbox.name not in names
        """)
    )
    words = ["-q", "--strict-markers", "-p", "bufferzone.adapters.pytest_plugin", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert "2 passed" in done.stdout, done.stdout


class Agent:
    """Speaks MCP to our server: a line of JSON each way."""

    def __init__(self, world) -> None:
        source = f"""
            from bufferzone.adapters import mcp_server
            words = "--sessions 2 --memory-mib 0 --cpus 0".split()  # this guest has no such cgroups
            sys.exit(mcp_server.main(words, root={world.root!r}))
        """
        self.process, self._last = world.program(source), 0
        hello = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        self.hello = self.ask("initialize", hello)
        self._send({"method": "notifications/initialized"})

    def _send(self, message: dict) -> None:
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def ask(self, method: str, params: dict) -> dict:
        self._last += 1
        self._send({"id": self._last, "method": method, "params": params})
        while True:
            line = self.process.stdout.readline()
            assert line, "the server has ended"
            answer = json.loads(line)
            if answer.get("id") == self._last:
                return answer["result"]

    def call(self, name: str, **arguments) -> str:
        answer = self.ask("tools/call", {"name": name, "arguments": arguments})
        text = "".join(part["text"] for part in answer["content"])
        return f"error: {text}" if answer.get("isError") else text

    def close(self) -> None:
        with self.process:
            self.process.stdin.close()
            assert self.process.wait(DEADLINE_S) == 0


def test_an_agent_runs_code_in_sessions_that_remember(world):
    pytest.importorskip("mcp")
    before = world.left()
    agent = Agent(world)
    assert agent.hello["serverInfo"]["name"] == "bufferzone"
    tools = {tool["name"]: tool for tool in agent.ask("tools/list", {})["tools"]}
    assert set(tools) == set("run_python run_command read_file write_file list_files end_session".split())
    assert all(tool["description"] for tool in tools.values())
    assert agent.call("run_python", code="x = 41") == ""
    assert agent.call("run_python", code="x + 1") == "42\n"
    assert agent.call("write_file", path="/srv/a", content="text") == "4 bytes"
    assert json.loads(agent.call("run_command", args=["cat", "/srv/a"]))["stdout"] == "text"
    assert agent.call("read_file", path="/srv/a", session="other").startswith("error: ")
    assert "no-such-file" in agent.call("read_file", path="/srv/a", session="other")
    assert json.loads(agent.call("list_files", path="/srv"))["name"] == "a"
    assert "many-sessions" in agent.call("run_python", code="1", session="third")
    assert agent.call("end_session", session="other") == "ended"
    assert "late" not in agent.call("run_python", code="import time; time.sleep(99)", timeout_s=0.5)
    assert "usage: " in agent.call("run_python", code="1", timeout_s=0)
    agent.close()
    assert sorted(world.left()) == sorted(before)


def test_without_the_sdk_the_server_says_what_to_install(world):
    source = """
        sys.modules["mcp"] = None
        from bufferzone.adapters import mcp_server
        sys.stderr = sys.stdout
        sys.exit(mcp_server.main([]))
    """
    process = world.program(source)
    said = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 1
    assert said.endswith("(hint: pip install bufferzone[mcp])\n")


def test_the_programs_for_sandboxes_are_where_they_are_read():
    for name in ("call.py", "session.py"):
        assert "import" in executors._text(name)
