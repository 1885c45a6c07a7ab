"""Container images as OCI layouts: busybox, some files, a configuration; for skopeo to take."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

BUSYBOX = "/bin/busybox"
NAMES = "cat chmod echo env grep id ls mkdir pwd rm sh sleep stat test touch true wc".split()
_TYPE = "application/vnd.oci.image."


def layer(files: dict[str, bytes | None], *, busybox: bool = False) -> bytes:
    """A tar of these files (None: a directory), with busybox under its names below bin/."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.type, info.mode = (tarfile.DIRTYPE, 0o755) if data is None else (tarfile.REGTYPE, 0o644)
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
        if busybox:
            info = tarfile.TarInfo("bin/busybox")
            program = Path(BUSYBOX).read_bytes()
            info.mode, info.size = 0o755, len(program)
            archive.addfile(info, io.BytesIO(program))
            for name in NAMES:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
    return out.getvalue()


def write(place: Path, layers: list[bytes], config: dict, *, tag: str = "latest") -> str:
    """Make a layout in `place`; the reference of its image."""
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, kind: str) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": _TYPE + kind, "digest": f"sha256:{digest}", "size": len(data)}

    packed = [put(gzip.compress(data, 1, mtime=0), "layer.v1.tar+gzip") for data in layers]
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    blob = {
        "created": "2026-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": digests},
    }
    described = put(json.dumps(blob).encode(), "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": f"{_TYPE}manifest.v1+json", "config": described}
    found = put(json.dumps({**manifest, "layers": packed}).encode(), "manifest.v1+json")
    found["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))
    return f"oci:{place}:{tag}"


def of_packages(place: Path, names: list[str], **config) -> str:
    """An image of what these Debian packages have installed on this host, and what they depend on."""
    out, seen = io.BytesIO(), set()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path in _files(names):
            real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            if real not in seen and not (os.path.isdir(real) and not os.path.islink(real)):
                seen.add(real)
                archive.add(real, recursive=False)
        for path in ("bin", "sbin", "lib", "lib64"):
            if os.path.islink(f"/{path}") and f"/{path}" not in seen:
                archive.add(f"/{path}", recursive=False)
    return write(place, [out.getvalue()], config)


def _files(names: list[str]) -> list[str]:
    wanted, found = list(names), []
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.append(name)
            words = ["dpkg-query", "-W", "-f", "${Depends}", name]
            text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            wanted += [
                part.split("|")[0].split("(")[0].split(":")[0].strip() for part in text.split(",") if part
            ]
    listed = subprocess.run(["dpkg", "-L", *found], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith("/") and line != "/."]


def usual(place: Path, **config) -> str:
    """Two layers: busybox with a user `app`; on it a file less, and one that says so."""
    passwd = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n"
    base = {"bin": None, "etc": None, "etc/passwd": passwd, "etc/gone": b"old\n", "srv": None, "tmp": None}
    top = {"etc/.wh.gone": b"", "etc/layer": b"top\n"}
    return write(place, [layer(base, busybox=True), layer(top)], config)
