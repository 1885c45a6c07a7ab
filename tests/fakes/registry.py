"""A registry on loopback, Debian's docker-registry, and a proxy in front of one that dies in the middle."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path

PROGRAM = "docker-registry"
HERE = bool(shutil.which(PROGRAM) and shutil.which("skopeo"))
#: user ann, password secret, as htpasswd -B writes it
_USERS = "ann:$2y$05$dJlE38iy3WV827i4yViPm.7ZzC2hvZ8dr6ZS3ubz2/PE66FacY.Xi\n"
_DEADLINE_S = 120


class Registry:
    """One with its data in `place`, `private` or open. `close` ends it."""

    def __init__(self, place: Path, *, private: bool = False) -> None:
        self._blobs = place / "data/docker/registry/v2/blobs/sha256"
        place.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        config = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
            "http": {"addr": self.address},
        }
        self.auth_file = place / "auth.json"
        if private:
            (place / "users").write_text(_USERS)
            config["auth"] = {"htpasswd": {"realm": "here", "path": str(place / "users")}}
            login = {"auths": {self.address: {"auth": "YW5uOnNlY3JldA=="}}}
            self.auth_file.write_text(json.dumps(login))
        (place / "config.json").write_text(json.dumps(config))
        words = [PROGRAM, "serve", str(place / "config.json")]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._await()

    def _await(self) -> None:
        """Wait until it listens; what it says afterwards is dropped."""
        assert self._process.stdout is not None
        deadline = threading.Timer(_DEADLINE_S, self._process.kill)
        deadline.start()
        listens = any(b"listening on" in line for line in self._process.stdout)
        deadline.cancel()
        assert listens, "the registry did not start"
        self._rest = threading.Thread(target=self._process.stdout.read, daemon=True)
        self._rest.start()

    def push(self, source: str, name: str) -> str:
        """Put an image of skopeo's transports there; the reference of it."""
        words = ["skopeo", "copy", "-q", "--dest-tls-verify=false"]
        if self.auth_file.exists():
            words += ["--dest-authfile", str(self.auth_file)]
        reference = f"{self.address}/{name}"
        subprocess.run([*words, source, f"docker://{reference}"], check=True, timeout=_DEADLINE_S)
        return reference

    def largest_blob(self) -> Path:
        """The file that is the content of the largest blob."""
        return max(self._blobs.glob("*/*/data"), key=lambda path: path.stat().st_size)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._rest.join()
        self._process.stdout.close()


class Dying:
    """Passes on what a registry says on `port`, and dies for good after `most` bytes of it."""

    def __init__(self, registry: Registry, most: int) -> None:
        self._registry, self._left = registry, most
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                there = socket.create_connection(("127.0.0.1", self._registry.port))
            except OSError:
                return  # it is dead
            with self._lock:
                self._open += [client, there]
            threading.Thread(target=self._pass, args=(client, there, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(there, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 14):
                with self._lock:
                    self._left -= len(data) if counted else 0
                    over = self._left < 0
                if over:
                    self.close()
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is dead

    def close(self) -> None:
        """Die."""
        with self._lock:
            for each in (self._server, *self._open):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the other side was first
                each.close()
