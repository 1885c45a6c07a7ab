"""What a person writes for an image: a name in a registry, a transport of skopeo's, or a plain directory.

Names are completed as Docker completes them. Source: containers-transports(5), the distribution project's
reference grammar.
"""

from __future__ import annotations

import os

from bufferzone.errors import UsageError
from bufferzone.log import shown
from bufferzone.record import Record

REGISTRY, TRANSPORT, DIRECTORY = "registry", "transport", "directory"
_FILES = {"oci": "index.json", "dir": "manifest.json", "oci-archive": "", "docker-archive": ""}
_ELSEWHERE = ("containers-storage", "docker-daemon")
_LOOPBACK = ("localhost", "127.", "[::1]")
_HUB = "docker.io"
_PATH = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_MOST_TAG, _LEAST_DIGEST = 128, 32


class Reference(Record):
    """`text` as written; `kind`; `source` for skopeo, or the directory; `name` in our store.

    `fixed`: what it leads to cannot change. `plain`: its registry is on this machine, and may speak HTTP.
    """

    text: str
    kind: str
    source: str
    name: str
    fixed: bool = False
    plain: bool = False


def parse(text: str) -> Reference:
    """Read a reference; a path is one that begins with / or a dot. Raises `UsageError`."""
    if not text or "\0" in text or len(text) > 1000:
        raise UsageError(f"not an image: {shown(text)}")
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        return Reference(text=text, kind=DIRECTORY, source=os.path.realpath(text), name="", fixed=True)
    transport, colon, rest = text.partition(":")
    if text.startswith("docker://"):
        return _registry(text, text.removeprefix("docker://"))
    if colon and transport in (*_FILES, *_ELSEWHERE):
        if not rest:
            raise UsageError(
                f"{transport}: expected an image, got {shown(text)}", hint="containers-transports(5)"
            )
        return _transport(text, transport, rest)
    return _registry(text, text)


def _transport(text: str, transport: str, rest: str) -> Reference:
    """Named after what lies there now, so that a changed file is another image."""
    if transport in _ELSEWHERE:
        mark, fixed, source = rest, False, text
    else:
        path, colon, more = rest.partition(":")
        path = os.path.realpath(path)
        mark, fixed, source = _mark(text, os.path.join(path, _FILES[transport])), True, f"{transport}:{path}"
        source += colon + more
    base = "".join(c if c in _PATH and c.isalnum() else "-" for c in os.path.basename(rest).lower())
    base = "-".join(part for part in base.split("-") if part) or "image"
    import hashlib  # a name in a registry needs none

    tag = hashlib.sha256(f"{source} {mark}".encode()).hexdigest()[:12]
    name = f"localhost/{transport}/{base[:80]}:{tag}"
    return Reference(text=text, kind=TRANSPORT, source=source, name=name, fixed=fixed)


def _mark(text: str, path: str) -> str:
    try:
        found = os.stat(path.rstrip("/"))
    except OSError as error:
        raise UsageError(f"no such image: {shown(text)}: {error.strerror}: {path.rstrip('/')}") from error
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _registry(text: str, name: str) -> Reference:
    rest, at, digest = name.partition("@")
    path, tag = rest, ""
    if ":" in rest.rpartition("/")[2]:
        path, _, tag = rest.rpartition(":")
    host, slash, inside = path.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, inside = _HUB, path
    if host in (_HUB, "index.docker.io"):
        host, inside = _HUB, inside if "/" in inside else f"library/{inside}"
    _check(text, host, inside, tag if ":" in rest.rpartition("/")[2] else "latest", digest if at else None)
    full = f"{host}/{inside}" + (f"@{digest}" if at else f":{tag or 'latest'}")
    plain = host.startswith(_LOOPBACK)
    return Reference(
        text=text, kind=REGISTRY, source=f"docker://{full}", name=full, fixed=bool(at), plain=plain
    )


def _check(text: str, host: str, path: str, tag: str, digest: str | None) -> None:
    parts = path.split("/")
    good = all(part and set(part) <= _PATH and part[0].isalnum() and part[-1].isalnum() for part in parts)
    good &= bool(host) and set(host) <= _WORD | set(":[]") and len(path) <= 255
    good &= 0 < len(tag) <= _MOST_TAG and set(tag) <= _WORD and tag[0] not in ".-"
    if digest is not None:
        kind, _, value = digest.partition(":")
        good &= kind in ("sha256", "sha512") and len(value) >= _LEAST_DIGEST
        good &= set(value) <= set("0123456789abcdef")
    if not good:
        hint = "lower case: NAME[:TAG], REGISTRY/NAME[:TAG], NAME@sha256:..." if text != text.lower() else ""
        raise UsageError(
            f"not the name of an image: {shown(text)}", hint=hint or "NAME[:TAG] or REGISTRY/NAME[:TAG]"
        )
