"""What a config.json names on this host: looked for before anything is started or written.

Nothing is opened. What is gone a moment later is found by whoever opens it.
"""

from __future__ import annotations

import os

from bufferzone import config
from bufferzone.errors import SpecError
from bufferzone.oci import ports
from bufferzone.oci.check import fail
from bufferzone.oci.mounts import is_bind, is_made_on_the_host
from bufferzone.oci.overrides import apply_annotations, apply_vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.oci import Spec


def settings_of(spec: Spec) -> config.Settings:
    """The settings of one container; raises `SpecError` for one that is refused."""
    settings = apply_vm(apply_annotations(config.load(), spec.annotations), spec.vm)
    return settings.with_values(**spec.chosen) if spec.chosen else settings


def check_host(spec: Spec) -> None:
    """Raise `SpecError` for a volume or network namespace that is not there, a file system that cannot be
    mounted, or a setting that is refused.
    """
    settings = settings_of(spec)
    for index, mount in enumerate(spec.mounts):
        if is_bind(mount):
            where = f"mounts[{index}].source"
            if not mount.get("source"):
                raise fail(where, "missing: a bind mount needs a source")
            _check_there(where, os.path.join(spec.bundle, mount["source"]))
        elif is_made_on_the_host(mount):
            from bufferzone.oci import hostmounts  # few containers have one

            hostmounts.check(mount, f"mounts[{index}]")
    check_network(spec.raw, settings)


def network_namespace(spec: dict[str, Any]) -> tuple[int, str] | None:
    """Index and path (empty: a new one) of the network namespace in a config.json; None: the host's."""
    for index, entry in enumerate((spec.get("linux") or {}).get("namespaces") or []):
        if entry["type"] == "network":
            return index, str(entry.get("path") or "")
    return None


def check_network(spec: dict[str, Any], settings: config.Settings) -> None:
    """Raise `SpecError` for a network namespace that is not there, and for the host's unless `host_network`
    says what to do then.
    """
    entry = network_namespace(spec)
    if entry is not None and entry[1]:
        _check_namespace(f"linux.namespaces[{entry[0]}].path", entry[1])
    if asks_for_host_network(spec) and settings.host_network == "refuse":
        raise fail(
            "linux.namespaces",
            "a VM cannot use the host's network: config.json asks for no network namespace",
            hint='use a bridge network or none, or set host_network = "none" (then it has no network) or '
            f'"passt" in {config.DIRECTORY}/config.toml',
        )
    for text in settings.publish:
        try:
            ports.parse(text)
        except ValueError as error:
            raise SpecError(f"publish: {error}", code="bad-port") from error


def asks_for_host_network(spec: dict[str, Any]) -> bool:
    """Whether the container of this config.json is to be in the network namespace that we are in."""
    entry = network_namespace(spec)
    if entry is None:
        return True
    return bool(entry[1]) and os.path.samefile(entry[1], "/proc/self/ns/net")


def _check_namespace(where: str, path: str) -> None:
    """Only namespaces are on the file system that they are on; of which kind it is, `setns` will say."""
    if _check_there(where, path).st_dev != os.stat("/proc/self/ns/net").st_dev:
        hint = "a file below /run/netns is one only while `ip netns` has a namespace mounted there"
        raise fail(where, f"not a network namespace: {path}", hint)


def _check_there(where: str, path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise fail(where, f"{reason}: {path}") from error
