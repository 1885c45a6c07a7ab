"""Several containers of one sandbox: what they share, what not, who ends with whom, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import threading

import pytest

import bufferzone
from bufferzone import aio, state
from bufferzone.images import store
from fakes import oci_layout, registry
from flow.cli import DEADLINE_S, make_rootfs, needs_host
from flow.test_library import World, ended

pytestmark = needs_host

SERVER = (
    "import socket; s = socket.create_server(('127.0.0.1', 7000)); "
    "print('up', flush=True)\nwhile True: s.accept()[0].sendall(b'from the cache')"
)
ASK = "import socket; print(socket.create_connection(('127.0.0.1', 7000)).recv(100).decode())"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A world of the test's own, in which nothing may be left."""
    monkeypatch.setattr(store, "ours", lambda: store.Store(str(tmp_path / "storage")))
    world = World(tmp_path)
    world.store.mkdir()
    yield world
    left = world.left()
    world.close()
    assert left == []


@pytest.fixture
def pair(alone):
    with alone.sandbox(name="first") as sb, sb.container(name="cache") as cache:
        yield sb, cache


def shim_of(alone, name):
    return os.pidfd_open(state.owner_pid(os.path.join(alone.root, name)))


def test_they_reach_each_other_at_the_loopback_both_ways(pair):
    for server, client in (pair, reversed(pair)):
        with server.start(["python3", "-c", SERVER]) as process:
            assert process.stdout.readline() == b"up\n"
            done = client.run(["python3", "-c", ASK], timeout_s=DEADLINE_S)
            assert done.stdout == "from the cache\n"


def test_network_ipc_and_shared_memory_are_the_sandboxs_and_all_else_its_own(pair):
    kinds = ("net", "ipc", "mnt", "pid", "uts", "cgroup")
    one, two = ([box.run(["readlink", f"/proc/self/ns/{kind}"]).stdout for kind in kinds] for box in pair)
    assert [mine == theirs for mine, theirs in zip(one, two, strict=True)] == [True] * 2 + [False] * 4
    sb, cache = pair
    sb.files.write("/dev/shm/shared", "seen")
    assert cache.files.read_text("/dev/shm/shared") == "seen"
    cache.files.write("/srv/mine", "x")
    assert not sb.files.exists("/srv/mine")
    assert [box.run(["hostname"]).stdout for box in pair] == ["first\n", "cache\n"]


def test_a_container_has_volumes_user_environment_and_a_command_of_its_own(alone, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("of the host")
    with alone.sandbox(env={"A": "sandbox"}) as sb:
        script = "echo $A $(id -u) $(pwd) $(cat /mnt/file); exec sleep 1000"
        with sb.container(
            command=["sh", "-c", script],
            volumes={tmp_path / "data": "/mnt"},
            user="nobody",
            cwd="/tmp",
            env={"A": "container"},
        ) as made:
            wait_for(made, lambda: made.logs())
            assert made.logs() == "container 65534 /tmp of the host\n"
            assert made.run(["id", "-u"]).stdout == "65534\n"
        assert not sb.files.exists("/mnt/file")


def wait_for(box, probe):
    from vm.verbs import await_true

    await_true(probe, f"{box}")


def test_a_directory_and_an_image_are_root_file_systems_that_nothing_is_written_to(alone, tmp_path):
    make_rootfs(tmp_path / "rootfs")
    (tmp_path / "rootfs/etc/of").write_text("the directory")
    with alone.sandbox() as sb, sb.container(tmp_path / "rootfs") as one:
        assert one.files.read_text("/etc/of") == "the directory"
        one.files.write("/etc/of", "changed")
        assert one.run(["cat", "/etc/of"]).stdout == "changed"
        assert not sb.files.exists("/etc/of")
    assert (tmp_path / "rootfs/etc/of").read_text() == "the directory"


@pytest.mark.skipif(not registry.HERE, reason="needs docker-registry and skopeo")
def test_an_image_is_pulled_and_asked_what_it_wants(alone, tmp_path):
    asks = {"Env": ["A=image"], "User": "app", "WorkingDir": "/srv"}
    image, lines = oci_layout.usual(tmp_path / "layout", **asks), []
    with alone.sandbox() as sb, sb.container(image, progress=lines.append) as one, sb.container(image) as two:
        done = one.run(["sh", "-c", "echo $A $(id -u) $(pwd) $(cat /etc/layer)"])
        assert done.stdout == "image 1000 /srv top\n"
        one.run(["sh", "-c", "echo other >/etc/layer"], user="root")
        assert two.files.read_text("/etc/layer") == "top\n"
    assert lines[0].startswith("pulling oci:")


def test_who_closes_it_leaves_the_sandbox_and_the_others_running(alone):
    with alone.sandbox() as sb, sb.container() as other:
        for _ in range(3):
            with sb.container(name="again") as made:
                assert made.run(["echo", "on"]).stdout == "on\n"
            assert made.status == "stopped"
        assert sb.run(["true"]).ok
        assert other.run(["true"]).ok
        with pytest.raises(bufferzone.StateError, match="the container has ended: again") as caught:
            made.run(["true"])
        assert caught.value.code == "container-ended"


def test_who_has_the_name_of_one_that_was_closed_is_another(alone):
    with alone.sandbox() as sb:
        old = sb.container(name="again")
        old.close()
        with sb.container(name="again") as made:
            old.remove()
            old.close()
            assert (old.status, made.status) == ("stopped", "running")
            for call in (
                lambda: old.run(["true"]),
                old.wait,
                old.pause,
                lambda: old.files.read("/etc/passwd"),
            ):
                with pytest.raises(bufferzone.StateError) as caught:
                    call()
                assert caught.value.code == "container-ended"
            assert made.run(["true"]).ok


def test_what_ends_by_itself_or_is_killed_does_not_disturb_the_others(pair):
    sb, cache = pair
    with sb.container(command=["python3", "-c", "import ctypes; ctypes.string_at(0)"]) as crashed:
        assert crashed.wait() == 139
        assert crashed.status == "stopped"
    assert not cache.run(["sh", "-c", "kill -9 -1"]).ok  # nobody else is there
    assert sb.run(["true"]).ok


def test_containers_end_with_their_sandbox(alone):
    with alone.sandbox() as sb:
        made = [sb.container() for _ in range(3)]
    assert [box.status for box in made] == ["stopped"] * 3
    assert alone.left() == []


FIFO = "mkfifo /dev/shm/end; read x </dev/shm/end"


@pytest.mark.parametrize(
    ("more", "status"), [({"command": ["sh", "-c", FIFO]}, 0), ({"timeout_s": 1.0}, 137)]
)
def test_they_end_with_the_first_however_that_ends(alone, more, status):
    with alone.sandbox(**more) as first:
        made = first.container()
        if not status:
            wait_for(made, lambda: made.files.exists("/dev/shm/end"))
            made.run(["sh", "-c", "echo >/dev/shm/end"])
        assert (made.wait(), first.wait()) == (137, status)
        for box, code in ((made, "container-ended"), (first, "sandbox-ended")):
            with pytest.raises(bufferzone.StateError) as caught:
                box.run(["true"])
            assert caught.value.code == code
        assert refused(first) == "sandbox-ended"


def test_it_is_listed_with_its_sandbox_and_found_by_its_name(alone, pair):
    sb, cache = pair
    listed = {info.name: info.sandbox for info in bufferzone.Sandbox.list(root=alone.root)}
    assert listed == {"first": "", "cache": "first"}
    assert cache.info().sandbox == "first"
    rows = {row["id"]: row["sandbox"] for row in json.loads(alone.cli.bz("ps", "--json").stdout)}
    assert rows == listed
    assert "SANDBOX" in alone.cli.bz("ps").stdout.splitlines()[0]
    assert alone.cli.bz("exec", "cache", "hostname").stdout == "cache\n"
    with alone.attach("cache") as found:
        assert found.run(["hostname"]).stdout == "cache\n"
    assert cache.run(["true"]).ok
    alone.attach("cache").remove()
    assert cache.status == "stopped"
    assert sb.run(["true"]).ok


def test_counters_logs_and_a_pause_are_each_containers_own(alone):
    with alone.sandbox() as sb, sb.container(command=["sh", "-c", "echo mine; exec sleep 1000"]) as made:
        wait_for(made, lambda: made.logs())
        assert (sb.logs(), made.logs()) == ("", "mine\n")
        assert made.stats().cpu_s < 1000
        made.pause()
        assert (made.status, sb.status) == ("paused", "running")
        assert sb.run(["true"]).ok
        made.resume()
        assert made.run(["true"]).ok


@pytest.mark.parametrize(
    ("more", "error", "code"),
    [
        ({"image": "no-such-image"}, bufferzone.CallerError, None),
        ({"image": "/no/such"}, bufferzone.CallerError, "image-unknown"),
        ({"memory_mib": 4096}, bufferzone.CallerError, "vm-size"),
        ({"memory_mib": 450}, bufferzone.CallerError, "vm-size"),
        ({"cpus": 2}, bufferzone.CallerError, "vm-size"),
        ({"memory_mib": -1}, bufferzone.UsageError, "usage"),
        ({"name": "first"}, bufferzone.ExistsError, None),
        ({"name": "other"}, bufferzone.ExistsError, None),
        ({"name": "no/name"}, bufferzone.UsageError, "bad-id"),
        ({"user": "ghost"}, bufferzone.UsageError, None),
        ({"command": "text"}, bufferzone.UsageError, "usage"),
        ({"command": ["no-such-program"]}, bufferzone.ExecError, None),
        ({"volumes": {"/no/such": "/x"}}, bufferzone.CallerError, "no-volume"),
        ({"labels": {"bufferzone.sandbox": "x"}}, bufferzone.UsageError, "usage"),
    ],
)
def test_what_cannot_be_is_an_exception_and_leaves_nothing(alone, more, error, code):
    with alone.sandbox(name="first") as sb, sb.container(name="other") as other:
        before = sorted(alone.left())
        with pytest.raises(error) as caught:
            sb.container(**more)
        assert code in (None, caught.value.code)
        assert "\n" not in str(caught.value)
        assert sorted(alone.left()) == before
        assert sb.run(["true"]).ok
        assert other.run(["true"]).ok


def refused(sandbox):
    with pytest.raises(bufferzone.StateError) as caught:
        sandbox.container("no-such-image")  # refused before that is asked for
    assert sandbox.name in str(caught.value)
    return caught.value.code


def test_a_sandbox_that_is_not_ours_or_has_ended_takes_none(alone, tmp_path):
    with alone.sandbox(name="ours") as sb, alone.attach("ours") as attached:
        assert refused(attached) == "not-ours"
    assert refused(sb) == "sandbox-ended"
    with alone.sandbox(name="apart", detached=True) as detached:
        assert refused(detached) == "not-ours"
        detached.remove()
        assert refused(detached) == "sandbox-ended"


def test_a_sandbox_on_a_disk_takes_none_and_one_with_containers_is_not_saved(alone, tmp_path, pair):
    make_rootfs(tmp_path / "rootfs")
    with alone.sandbox(tmp_path / "rootfs") as sb:
        assert refused(sb) == "vm-shared"
    for save in (lambda: pair[0].snapshot("ready"), pair[0].fork):
        with pytest.raises(bufferzone.StateError, match="first has cache") as caught:
            save()
        assert caught.value.code == "not-saveable"


def test_a_killed_program_leaves_none_of_them(alone):
    program = alone.program("""
        box = sandbox(name="orphan")
        made = [box.container(name=f"orphan-{n}") for n in range(3)]
        print("made", flush=True)
        sys.stdin.read()
    """)
    assert program.stdout.readline() == "made\n"
    shim = shim_of(alone, "orphan-1")
    program.kill()
    program.communicate()
    ended(shim)
    alone.sandbox().close()  # the next one tidies


def test_a_program_that_is_killed_while_it_adds_one_leaves_none(alone):
    """At whatever moment: each turn is another one."""
    for turn in range(12):
        program = alone.program(f"""
            box = sandbox(name="turn{turn}")
            print("made", flush=True)
            while True:
                box.container(name="turn{turn}-added").close()
        """)
        assert program.stdout.readline() == "made\n"
        shim = shim_of(alone, f"turn{turn}")
        ready, _, _ = select.select([shim], [], [], 0.1 + turn * 0.017)
        assert not ready
        program.kill()
        program.communicate()
        ended(shim)
    alone.sandbox().close()  # the next one tidies


def test_a_program_that_ends_in_order_leaves_none(alone):
    program = alone.program("box = sandbox(); box.container(); box.container(); print('made')")
    assert program.communicate(timeout=DEADLINE_S)[0] == "made\n"


def test_the_child_of_a_fork_may_use_one_and_makes_none(alone):
    program = alone.program("""
        import os
        box = sandbox(name="forked")
        made = box.container(name="made")
        pid = os.fork()
        if pid == 0:
            print(made.run(["hostname"]).stdout, end="", flush=True)
            try:
                box.container()
            except bufferzone.StateError as error:
                print(error.code, flush=True)
            made.close(), box.close()
            os._exit(0)
        os.waitpid(pid, 0)
        print(made.run(["hostname"]).stdout, end="", flush=True)
    """)
    assert program.communicate(timeout=DEADLINE_S)[0].split() == ["made", "not-ours", "made"]


def test_a_killed_shim_ends_them_all_and_each_says_so(alone, pair):
    shim = shim_of(alone, "first")
    signal.pidfd_send_signal(shim, signal.SIGKILL)
    ended(shim)
    for box, code in zip(pair, ("sandbox-ended", "container-ended"), strict=True):
        with pytest.raises(bufferzone.StateError) as caught:
            box.run(["true"])
        assert caught.value.code == code
        assert box.name in str(caught.value)
    assert refused(pair[0]) == "sandbox-ended"


def test_who_removes_the_sandbox_at_a_terminal_ends_the_others(alone, pair):
    sb, cache = pair
    alone.cli.bz("rm", "-f", "first")
    assert cache.wait() == 137
    assert refused(sb) == "sandbox-ended"


def test_many_at_once_in_one_sandbox_are_all_right(alone):
    with alone.sandbox() as sb:
        results, failures = {}, []

        def work(number):
            try:
                with sb.container(name=f"c{number}") as made:
                    results[number] = made.run(["hostname"]).stdout
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert results == {n: f"c{n}\n" for n in range(10)}


@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.05, 0.08])
def test_one_that_is_added_while_the_sandbox_goes_is_there_or_an_exception(alone, wait_s):
    for end in (bufferzone.Sandbox.remove, bufferzone.Sandbox._end):
        sb, said = alone.sandbox(), []
        timer = threading.Timer(wait_s, end, [sb])
        timer.start()
        try:
            sb.container().wait()
        except bufferzone.StateError as error:
            said.append(error.code)
        timer.join()
        sb.close()
        assert said in ([], ["sandbox-ended"])
        assert alone.left() == []


def test_asyncio_has_the_same(alone):
    async def work():
        async with aio.Sandbox(root=alone.root) as sb:
            async with sb.container(name="cache") as cache, await sb.container() as other:
                done = await asyncio.gather(*(box.run(["hostname"]) for box in (sb, cache, other)))
                await cache.files.write("/srv/x", "text")
                assert not await other.files.exists("/srv/x")
                async with await cache.start(["cat"]) as process:
                    await process.write(b"line\n")
                    assert await process.readline() == b"line\n"
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(cache.run(["sleep", "1000"]), 0.5)
                listed = [info.sandbox for info in await aio.Sandbox.list(root=alone.root)]
                assert listed.count(sb.name) == 2
            assert (await sb.run(["true"])).ok
            return [result.stdout for result in done][1]

    assert asyncio.run(work()) == "cache\n"
