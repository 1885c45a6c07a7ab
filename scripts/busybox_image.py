"""Makes an OCI image (a layout in a tar) from Debian's static busybox: one layer, the same bytes every time.

    busybox_image.py FILE       prints the image's name, which ends in a hash of its content; then
                                podman load -i FILE, ctr images import FILE, or docker load -i FILE

`manifest.json` says the same again as Docker before 25 reads it, which knows no layout.

Standard library only; nothing is downloaded and no root is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from typing import Any

BUSYBOX = "/bin/busybox"
REPOSITORY = "localhost/bufferzone/busybox"
EPOCH = "1970-01-01T00:00:00Z"
MEDIA = "application/vnd.oci.image"
FOLDERS = {"bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700,
           "run": 0o755, "sbin": 0o755, "sys": 0o755, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755,
           "usr/sbin": 0o755, "var": 0o755, "var/tmp": 0o1777}  # fmt: skip
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(f"usage: {sys.argv[0]} FILE", file=sys.stderr)
        return 2
    try:
        name, data = archive(layer())
    except FileNotFoundError as error:
        print(f"busybox_image: not found: {error.filename}; run: scripts/install", file=sys.stderr)
        return 1
    with open(arguments[0], "wb") as file:
        file.write(data)
    print(name)
    return 0


def layer() -> bytes:
    """The file system as an uncompressed tar with fixed owners, times and order."""
    with open(BUSYBOX, "rb") as file:
        busybox = file.read()
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, check=True, text=True).stdout
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, mode in FOLDERS.items():
            tar.addfile(_entry(path, tarfile.DIRTYPE, mode))
        _add(tar, "bin/busybox", busybox, 0o755)
        for path, text in FILES.items():
            _add(tar, path, text.encode(), 0o644)
        for applet in sorted(set(listed.split()) - {"busybox"}):
            link = _entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            tar.addfile(link)
    return out.getvalue()


def _entry(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = kind, mode
    return entry


def _add(tar: tarfile.TarFile, path: str, data: bytes, mode: int) -> None:
    entry = _entry(path, tarfile.REGTYPE, mode)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def archive(layer: bytes, command: tuple[str, ...] = ("sh",)) -> tuple[str, bytes]:
    """An OCI image layout around one layer, as (name of the image, tar)."""
    blobs: dict[str, bytes] = {}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": list(command), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": EPOCH, "created_by": "bufferzone scripts/busybox_image.py"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _blob(blobs, f"{MEDIA}.config.v1+json", _json(config)),
        "layers": [_blob(blobs, f"{MEDIA}.layer.v1.tar", layer)],
    }
    described = _blob(blobs, f"{MEDIA}.manifest.v1+json", _json(manifest))
    name = f"{REPOSITORY}:{described['digest'].removeprefix('sha256:')[:12]}"
    described["annotations"] = {"org.opencontainers.image.ref.name": name}
    blobs["index.json"] = _json({"schemaVersion": 2, "manifests": [described]})
    blobs["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    blobs["manifest.json"] = _json([_for_docker(name, manifest)])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in sorted(blobs.items()):
            _add(tar, path, data, 0o644)
    return name, out.getvalue()


def _for_docker(name: str, manifest: dict[str, Any]) -> dict[str, object]:
    """The image in an archive of `docker save`, with the same blobs."""
    config, *layers = (
        f"blobs/{one['digest'].replace(':', '/')}" for one in (manifest["config"], *manifest["layers"])
    )
    return {"Config": config, "RepoTags": [name], "Layers": layers}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _blob(blobs: dict[str, bytes], media_type: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs[f"blobs/sha256/{digest}"] = data
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
