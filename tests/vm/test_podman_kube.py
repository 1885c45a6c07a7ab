"""Podman where a pod's containers follow each other: init containers, from a file of Kubernetes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.verbs import await_true

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

#: init containers that take a moment; restartPolicy Always restarts them, with Podman 4.3
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: kube
spec:
  restartPolicy: OnFailure
  initContainers:
  - name: first
    image: {image}
    command: ["sh", "-c", "sleep 1; echo made >/shared/file"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  - name: second
    image: {image}
    command: ["sh", "-c", "cat /shared/file >/shared/copy"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  containers:
  - name: main
    image: {image}
    command: ["sh", "-c", "cat /shared/copy; exec sleep 100000"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  volumes:
  - name: shared
    hostPath: {{path: "{volume}", type: Directory}}
"""


def test_init_containers_of_a_pod_run_to_their_end_before_the_others_in_its_vm(
    podman, tmp_path: Path
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(POD.format(image=podman.image, volume=tmp_path))
    try:
        podman("play", "kube", "--network", "none", file, timeout_s=300)
        assert await_true(lambda: podman("logs", "kube-main").text, "its first line") == "made"
        assert len({path.read_text() for path in podman.state.glob("*/owner")}) == 1
    finally:
        podman("play", "kube", "--down", file, timeout_s=300)
