"""Installs bufferzone on the node of this pod, or takes it off: `install` or `uninstall`, then waits.

The programs run in the namespaces of the node's PID 1 (the pod has hostPID and is privileged). The node gets
the label that the RuntimeClass selects only after a container ran in a VM on it, which `bz node setup` tries,
and loses it first. Whatever fails is one line and status 1: the kubelet tries again, with growing pauses.
Source of the calls: Kubernetes API, nodes, GET and PATCH (application/merge-patch+json, RFC 7386).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: a directory of the node, seen from here and from there
NODE_ROOT, PLACE = Path("/proc/1/root"), "var/lib/bufferzone-installer"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABEL, PACKAGE = "bufferzone", "bufferzone"
#: how a node names its engine -> how `bz node` does
ENGINES = {"containerd": "containerd", "cri-o": "crio"}
TIMEOUT_S = 30.0


class Failed(Exception):
    """The one plain reason."""


class Node:
    """The node's object in the API."""

    def __init__(self, url: str, token: str, tls: ssl.SSLContext | None) -> None:
        self._url, self._token, self._tls = url, token, tls

    @classmethod
    def own(cls) -> Node:
        """Of the pod that this is; NODE_NAME comes from the DaemonSet."""
        try:
            host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
            name, token = os.environ["NODE_NAME"], (ACCOUNT / "token").read_text()
            tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        except (KeyError, OSError) as error:
            raise Failed(f"not in a pod of the DaemonSet: {error}") from error
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}/api/v1/nodes/{name}", token, tls)

    def engine(self) -> str:
        """What runs its pods, as `bz node` calls it."""
        version = str(self._call("GET", None)["status"]["nodeInfo"]["containerRuntimeVersion"])
        scheme = version.partition("://")[0]
        if scheme not in ENGINES:
            raise Failed(f"its pods are run by {version}; known: {', '.join(ENGINES)}")
        return ENGINES[scheme]

    def label(self, value: str | None) -> None:
        """Set our label, or take it away."""
        self._call("PATCH", {"metadata": {"labels": {LABEL: value}}})

    def _call(self, method: str, body: object) -> dict:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/merge-patch+json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self._tls) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise Failed(f"{method} {self._url}: {error}") from error


def on_node(*words: str) -> None:
    """Run a program of the node, as the node's; what it prints is in the pod's log."""
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
    status = subprocess.run(["nsenter", "--target", "1", *namespaces, "--", *words], check=False).returncode
    if status:
        raise Failed(f"failed with status {status} on the node: {' '.join(words)}")


def install(node: Node) -> None:
    """The package with what it depends on, the guest image, the engine's configuration, the label."""
    packages = sorted(HERE.glob(f"{PACKAGE}_*.deb"))
    if len(packages) != 1:
        raise Failed(f"{HERE}: expected one package, found {len(packages)}: build the image anew")
    engine = node.engine()
    folder = NODE_ROOT / PLACE
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.copyfile(packages[0], folder / packages[0].name)
    on_node("apt-get", "update")
    options = ("--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600")
    on_node(
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        *options,
        f"/{PLACE}/{packages[0].name}",
    )
    on_node("bz", "setup")
    on_node("bz", "node", "setup", "--for", engine)
    node.label("true")


def uninstall(node: Node) -> None:
    """The same back, in turn. Pods in VMs that run on the node go on until they end."""
    node.label(None)
    on_node("bz", "node", "undo", "--for", node.engine())
    on_node("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "purge", "--yes", PACKAGE)
    shutil.rmtree(NODE_ROOT / PLACE, ignore_errors=True)


def main(words: list[str]) -> int:
    """Do it once, then wait for the end of the pod."""
    actions = {"install": install, "uninstall": uninstall}
    if len(words) != 1 or words[0] not in actions:
        print("usage: install_node.py install|uninstall", file=sys.stderr)
        return 2
    try:
        actions[words[0]](Node.own())
    except Failed as error:
        print(f"bufferzone: {words[0]}: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # PID 1 is not ended by it else
    print(f"bufferzone: {words[0]}: done", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
