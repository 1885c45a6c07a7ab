"""Copies of a running container: saved once, without being ended, and restored under each new id.

A copy has its own clock, random numbers, hostname and files, no network and no terminal; what its processes
remember is the original's.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager

from bufferzone import oci, state
from bufferzone.client import checkpoint, create
from bufferzone.errors import ExistsError, HostError, StateError, UsageError
from bufferzone.linux import scratch
from bufferzone.oci.cgroup_path import systemd_form
from bufferzone.oci.host import settings_of
from bufferzone.oci.mounts import is_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from bufferzone.oci import Spec

_HOSTNAME = 63


def fork(
    root: str, id: str, names: Sequence[str], *, output: str = "", shim: str = "", forked: bool = False
) -> Iterator[str]:
    """Make running copies of container `id`; yields each of `names` once its copy runs.

    They read nothing; what they write goes to NAME.out and NAME.err in the directory `output`, or nowhere.
    What was saved is removed at the end, or when the iterator is closed. Raises `UsageError`, `ExistsError`
    or `StateError` before anything is done; what fails later leaves the copies that run.
    """
    for name in names:
        state.check_id(name)
        if os.path.exists(os.path.join(root, name)):
            raise ExistsError(f"container with given ID already exists: {name}")
    if len(set(names)) < len(names):
        raise UsageError("the new ids must differ")
    source = state.directory(root, id)
    original = oci.load(str(state.read_state(source)["bundle"]))
    if original.terminal:
        raise StateError(f"cannot fork container {id}: it has a terminal")
    with scratch.scratch(scratch.beside(settings_of(original).image_store)) as directory:
        image = os.path.join(directory, "image")
        checkpoint.save(source, image, leave_running=True)
        for name in names:
            spec = clone_of(original, name, os.path.join(root, name, create.OWN_BUNDLE))
            order = create.Order(root, name, spec, checkpoint=image, own_bundle=True, shim=shim)
            with _stdio(output, name) as stdio:
                create.run(order, stdio, forked=forked)
            yield name


@contextmanager
def _stdio(output: str, name: str) -> Iterator[list[int]]:
    """Descriptors for a copy. Raises `HostError`."""
    found: list[int] = []
    try:
        found.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        for suffix in ("out", "err"):
            path = os.path.join(output, f"{name}.{suffix}") if output else "/dev/null"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            found.append(os.open(path, flags, 0o600))
        yield found
    except OSError as error:
        raise HostError(f"cannot open {error.filename}: {error.strerror}", code="no-output") from error
    finally:
        for fd in found:
            os.close(fd)


def clone_of(original: Spec, name: str, bundle: str) -> Spec:
    """The spec of a copy, whose config.json is to lie in `bundle`: its own hostname and cgroup, no network,
    the same root on the host.
    """
    value: dict[str, Any] = json.loads(json.dumps(original.raw))
    value["hostname"] = name[:_HOSTNAME]
    value["root"]["path"] = original.rootfs
    linux = value.setdefault("linux", {})
    spaces = [entry for entry in linux.get("namespaces", []) if entry["type"] != "network"]
    linux["namespaces"] = [*spaces, {"type": "network"}]
    if original.cgroups_path:
        linux["cgroupsPath"] = _cgroup(original.cgroups_path, name)
    for entry in value.get("mounts", []):
        source = entry.get("source", "")
        if is_bind(entry) and source and not source.startswith("/"):
            entry["source"] = os.path.join(original.bundle, source)
    return oci.Spec(value, bundle)


def _cgroup(path: str, name: str) -> str:
    """A cgroup beside the original's; systemd's form is slice:prefix:name."""
    if systemd_form(path):
        return f"{path.rpartition(':')[0]}:{name}"
    return os.path.join(os.path.dirname(path.rstrip("/")), name)
