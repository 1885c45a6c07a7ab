"""The installer's part on a node, with a node that is none and an API that is none; the manifests' shapes."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"


@pytest.fixture
def installer():
    described = importlib.util.spec_from_file_location(
        "install_node", DEPLOY / "installer" / "install_node.py"
    )
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.fixture
def api():
    """A node's object: what was asked of it, and the answer of `GET`."""
    asked: list[tuple[str, str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.headers["Authorization"], json.loads(body) if body else None))
            answer = json.dumps({"status": {"nodeInfo": {"containerRuntimeVersion": server.engine}}}).encode()
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PATCH = _answer

        def log_message(self, *words) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.engine, server.status, server.asked = "containerd://1.7.24", 200, asked
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def node(installer, api, tmp_path, monkeypatch):
    """The node's object; `ran()` are the programs of the node, `/fails` names the one that fails."""
    monkeypatch.setattr(installer, "NODE_ROOT", tmp_path / "node")
    monkeypatch.setattr(installer, "HERE", tmp_path)
    (tmp_path / "bufferzone_1_amd64.deb").write_bytes(b"package")
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "nsenter"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/ran\ncase "$*" in *"$(cat {tmp_path}/fails)"*) exit 3;; esac\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "fails").write_text("nothing fails")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return installer.Node(f"http://127.0.0.1:{api.server_port}/api/v1/nodes/one", "secret", None)


def ran(tmp_path):
    lines = (tmp_path / "ran").read_text().splitlines()
    prefix = "--target 1 --mount --uts --ipc --net --pid -- "
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


def labels(api):
    return [body["metadata"]["labels"] for method, _, body in api.asked if method == "PATCH"]


def test_the_node_is_labelled_after_a_container_ran_there(installer, node, api, tmp_path):
    installer.install(node)
    package = "/var/lib/bufferzone-installer/bufferzone_1_amd64.deb"
    words = ran(tmp_path)
    assert words[-2:] == ["bz setup", "bz node setup --for containerd"]
    assert words[-3].endswith(package)
    assert (tmp_path / "node" / package.lstrip("/")).read_bytes() == b"package"
    assert labels(api) == [{"bufferzone": "true"}]
    assert {authorization for _, authorization, _ in api.asked} == {"Bearer secret"}


@pytest.mark.parametrize("failing", ["apt-get install", "bz setup", "bz node setup"])
def test_a_node_on_which_something_failed_gets_no_label(installer, node, api, tmp_path, failing):
    (tmp_path / "fails").write_text(failing.split()[-2] + " " + failing.split()[-1])
    with pytest.raises(installer.Failed, match="failed with status 3 on the node: "):
        installer.install(node)
    assert labels(api) == []


def test_cri_o_is_told_in_its_way_and_other_engines_are_refused(installer, node, api, tmp_path):
    api.engine = "cri-o://1.30.0"
    installer.install(node)
    assert ran(tmp_path)[-1] == "bz node setup --for crio"
    api.engine = "docker://20.10"
    with pytest.raises(installer.Failed, match=r"run by docker://20\.10; known: containerd, cri-o"):
        installer.install(node)


def test_an_uninstalled_node_loses_the_label_first(installer, node, api, tmp_path):
    installer.install(node)
    (tmp_path / "fails").write_text("bz node undo")
    with pytest.raises(installer.Failed):
        installer.uninstall(node)
    assert labels(api)[-1] == {"bufferzone": None}
    (tmp_path / "fails").write_text("nothing fails")
    installer.uninstall(node)
    assert ran(tmp_path)[-1].endswith("apt-get purge --yes bufferzone")
    assert not (tmp_path / "node" / "var/lib/bufferzone-installer").exists()


def test_an_api_that_refuses_is_one_line(installer, node, api):
    api.status = 403
    with pytest.raises(installer.Failed, match=r"GET http.*: HTTP Error 403"):
        installer.install(node)


def test_outside_a_pod_it_says_so(installer, monkeypatch, capsys):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert installer.main(["install"]) == 1
    assert capsys.readouterr().err.startswith("bufferzone: install: not in a pod of the DaemonSet: ")
    assert installer.main(["remove"]) == 2


def manifests() -> Iterator[object]:
    for path in sorted(DEPLOY.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield pytest.param(document, id=f"{path.name}-{document['kind']}")


@pytest.mark.parametrize("manifest", list(manifests()))
def test_the_manifests_are_what_kubernetes_accepts(manifest):
    assert kubernetes_validate.validate(manifest, "1.30", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest | {"bogus": 1}, "1.30", strict=True)


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.rglob("kustomization.yaml")), ids=lambda path: path.parent.name
)
def test_what_a_kustomization_names_is_there(path):
    overlay = yaml.safe_load(path.read_text())
    for name in overlay["resources"]:
        assert (path.parent / name).exists(), name


def test_the_patch_of_uninstall_hits_the_installers_argument():
    overlay = yaml.safe_load((DEPLOY / "uninstall" / "kustomization.yaml").read_text())
    (patch,) = overlay["patches"]
    (operation,) = yaml.safe_load(patch["patch"])
    found = yaml.safe_load((DEPLOY / "installer" / "daemonset.yaml").read_text())
    assert (patch["target"]["kind"], patch["target"]["name"]) == (found["kind"], found["metadata"]["name"])
    for step in operation["path"].strip("/").split("/"):
        found = found[int(step) if step.isdigit() else step]
    assert (found, operation["value"]) == (["install"], ["uninstall"])
