"""A shim without a VM: speaks the Task API, runs nothing. Started by the verbs with the hidden flag --shim.

What a process does is its args: `exit N` ends at once, `sleep` waits for a signal, `greet` says `up` first,
`cat` copies stdin to stdout, `size` prints the sizes a terminal gets. `missing` cannot be executed,
`refuse-create`, `refuse-boot`, `die-boot` and `die-create` fail where they say. Every
call is a line in calls.log beside the state directory.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "src")
sys.path.insert(0, SOURCE)

from bufferzone import state  # noqa: E402
from bufferzone.errors import BufferzoneError, ExecError, GuestError, NotFoundError, StateError  # noqa: E402
from bufferzone.wire import agent, metrics, shim, task, ttrpc  # noqa: E402
from bufferzone.wire.proto import Any_, Empty  # noqa: E402


class Fake:
    """One process: how it is written in the spec, how it ended."""

    def __init__(self, args: list[str], pid: int, fds: list[int], terminal: bool) -> None:
        self.args, self.pid, self.fds, self.terminal = args, pid, fds, terminal
        self.status = task.CREATED
        self.exit_status = 0
        self.exited = threading.Event()

    def start(self) -> None:
        self.status = task.RUNNING
        if self.args[0] == "exit":
            self.end(int(self.args[1]))
        elif self.args[0] == "greet":
            self.write("up\n")
        elif self.args[0] == "cat":
            threading.Thread(target=self.copy, daemon=True).start()

    def copy(self) -> None:
        while data := os.read(self.fds[0], 1 << 16):
            os.write(self.fds[1], data)
        self.end(0)

    def write(self, text: str) -> None:
        os.write(self.fds[0] if len(self.fds) == 1 else self.fds[1], text.encode())

    def end(self, status: int) -> None:
        if self.exited.is_set():
            return
        self.status, self.exit_status = task.STOPPED, status
        for fd in self.fds:
            os.close(fd)
        self.exited.set()


class FakeShim:
    def __init__(self, directory: str, bundle: str) -> None:
        self.directory, self.bundle = directory, bundle
        self.id = os.path.basename(directory)
        self.log_path = os.path.join(os.path.dirname(directory), "calls.log")
        self.processes: dict[str, Fake] = {}
        self.ended = threading.Event()

    def record(self, name: str, request: object) -> None:
        with open(self.log_path, "a") as file:
            file.write(f"{name} {request!r}\n")

    def write_state(self, status: str, pid: int) -> None:
        before = state.read_state(self.directory)
        del before["ociVersion"]
        state.write_state(self.directory, **{**before, "status": status, "pid": pid})

    def find(self, exec_id: str) -> Fake:
        if exec_id not in self.processes:
            raise NotFoundError(f"container {self.id} does not exist")
        return self.processes[exec_id]

    def do_create(self, request, fds, pid):
        with open(os.path.join(request.bundle, "config.json")) as file:
            args = json.load(file)["process"]["args"]
        if args[0] == "refuse-create":
            raise GuestError("mounts[3]: the guest refused", hint="ask it", code="guest-mount")
        if args[0] == "die-create":
            os._exit(9)
        self.processes[""] = Fake(args, pid, fds, request.terminal)
        self.write_state("created", pid)
        return task.CreateTaskResponse(pid=pid)

    def do_start(self, request, fds, pid):
        process = self.find(request.exec_id)
        if process.status != task.CREATED:
            raise StateError("cannot start an already running container")
        if process.args[0] == "missing":
            process.end(127)
            text = f'exec: "{process.args[0]}": executable file not found in $PATH'
            raise ExecError(text, code="exec-not-found")
        process.start()
        if not request.exec_id:
            self.write_state("running" if process.status == task.RUNNING else "stopped", process.pid)
        return task.StartResponse(pid=process.pid)

    def do_exec(self, request, fds, pid):
        spec = json.loads(request.spec.value)
        self.processes[request.exec_id] = Fake(spec["args"], pid, fds, request.terminal)
        return Empty()

    def do_kill(self, request, fds, pid):
        process = self.find(request.exec_id)
        if process.status == task.STOPPED:
            raise StateError("container not running", code="not-running")
        if request.signal == signal.SIGUSR1:
            process.write("usr1\n")
        else:
            self.stop(request.exec_id, 128 + request.signal)
        return Empty()

    def stop(self, exec_id: str, status: int) -> None:
        process = self.find(exec_id)
        if not exec_id:
            self.write_state("stopped", 0)
        process.end(status)

    def do_wait(self, request, fds, pid):
        process = self.find(request.exec_id)
        process.exited.wait()
        return task.WaitResponse(exit_status=process.exit_status)

    def do_delete(self, request, fds, pid):
        process = self.find(request.exec_id)
        if process.status == task.CREATED and not request.exec_id:
            self.stop("", 137)
        if process.status != task.STOPPED:
            raise StateError(f"cannot delete container {self.id} that is not stopped: running")
        del self.processes[request.exec_id]
        return task.DeleteResponse(exit_status=process.exit_status)

    def do_resizepty(self, request, fds, pid):
        process = self.find(request.exec_id)
        if not process.exited.is_set() and process.args[0] == "size":
            process.write(f"{request.width}x{request.height}\n")
        return Empty()

    def do_pause(self, request, fds, pid):
        self.find("").status = task.PAUSED
        self.write_state("paused", self.find("").pid)
        return Empty()

    def do_resume(self, request, fds, pid):
        self.find("").status = task.RUNNING
        self.write_state("running", self.find("").pid)
        return Empty()

    def do_update(self, request, fds, pid):
        return Empty()

    def do_pids(self, request, fds, pid):
        return task.PidsResponse(processes=[task.ProcessInfo(pid=p.pid) for p in self.processes.values()])

    def do_processes(self, request, fds, pid):
        row = agent.ProcessInfo(
            pid=7, ppid=1, uid=0, start_s=1700000000, cpu_ms=1500, tty="?", command="sleep 9"
        )
        return agent.PidsResponse(processes=[row])

    def do_stats(self, request, fds, pid):
        value = metrics.from_counters({"memory.current": 4096, "cpu.usage_usec": 7, "pids.current": 2})
        return task.StatsResponse(stats=Any_(type_url=metrics.TYPE_URL, value=value.encode()))

    def do_waitoom(self, request, fds, pid):
        process = self.find("")
        if "hit" in process.args and request.seen == 0 and request.timeout_ms:
            return shim.OomResponse(count=1)
        if request.timeout_ms:
            process.exited.wait(request.timeout_ms / 1000)
        return shim.OomResponse(count=request.seen, ended=process.exited.is_set())

    def do_connect(self, request, fds, pid):
        return task.ConnectResponse(shim_pid=os.getpid())

    def do_shutdown(self, request, fds, pid):
        return Empty()

    def abandoned(self, exec_ids: list[str]) -> None:
        for exec_id in exec_ids:
            process = self.processes.get(exec_id)
            if process and not process.exited.is_set():
                self.stop(exec_id, 137)

    def serve(self, sock: socket.socket) -> None:
        pid = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        reader, lock, pending, mine = ttrpc.FrameReader(), threading.Lock(), [], []
        while True:
            data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 8)
            pending += fds
            if not data:
                self.abandoned(mine)
                return
            for frame in reader.feed(data):
                request = ttrpc.Request.decode(frame.payload)
                methods = task.METHODS if request.service == task.SERVICE else shim.METHODS
                message = methods[request.method][0].decode(request.payload)
                self.record(request.method, message)
                if pending:
                    mine.append(getattr(message, "exec_id", ""))
                arguments = (sock, lock, frame.stream, request.method, message, pending, pid)
                pending = []
                threading.Thread(target=self.answer, args=arguments, daemon=True).start()

    def answer(self, sock, lock, stream, method, message, fds, pid) -> None:
        try:
            payload = getattr(self, f"do_{method.lower()}")(message, fds, pid).encode()
            response = ttrpc.Response(payload=payload)
        except BufferzoneError as error:
            response = ttrpc.Response(status=ttrpc.status_of(error))
        except Exception as error:
            response = ttrpc.Response(status=ttrpc.status_of(error))
            sys.stderr.write(f"{method}: {error!r}\n")
        with lock:
            sock.sendall(ttrpc.encode_frame(stream, ttrpc.RESPONSE, response.encode()))
        if method == "Shutdown" and "" not in self.processes:
            self.ended.set()


def serve(directory: str, bundle: str, ready: int) -> None:
    with open(os.path.join(bundle, "config.json")) as file:
        first = json.load(file)["process"]["args"][0]
    state.write_owner(directory, os.getpid())
    if first == "refuse-boot":
        form = {"code": "no-kvm", "message": "the VM did not boot", "hint": "look at it", "cls": "VmmError"}
        os.write(ready, json.dumps(form).encode() + b"\n")
        return
    if first == "die-boot":
        sys.exit("Traceback: it fell over")
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(directory)
    listener.bind("shim.sock")
    listener.listen(16)
    fake = FakeShim(directory, bundle)
    fake.record("Environment", sorted(os.environ))
    fake.record("Descriptors", sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:4])

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=fake.serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    os.write(ready, b"ready\n")
    os.close(ready)
    fake.ended.wait()
    os._exit(0)


def main(argv: list[str]) -> None:
    values = dict(zip(argv[:-1:2], argv[1:-1:2], strict=True))
    directory = os.path.join(values["-root"], values["-id"])
    if argv[-1] == "delete":
        with open(os.path.join(values["-root"], "calls.log"), "a") as file:
            file.write(f"delete-action {values['-id']}\n")
        return
    serve(directory, values["-bundle"], int(values["-ready-fd"]))


if __name__ == "__main__":
    main(sys.argv[1:])
