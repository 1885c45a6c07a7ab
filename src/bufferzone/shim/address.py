"""Where the shim of a bundle listens for containerd: one socket for each sandbox.

Source: containerd pkg/shim SocketAddress; runtime v2 README, "Start".
"""

from __future__ import annotations

import errno
import os

from bufferzone import oci, state
from bufferzone.digest import sha256
from bufferzone.linux.ignoring import ignoring
from bufferzone.oci import cri

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from bufferzone.shim.arguments import Arguments
else:
    import _socket as socket  # socket.py alone (enum, selectors) costs as much as a bare interpreter

_SOCKETS = "/run/containerd/s"
_GROUP_KEYS = (cri.SANDBOX_ID, cri.CRIO_SANDBOX_ID, "io.containerd.runc.v2.group")


def socket_path(arguments: Arguments, bundle: str) -> str:
    """The path for the sandbox that the bundle's annotations name, else for its own. Raises `SpecError`."""
    annotations: dict[str, str] = {}
    if not is_pods(bundle):
        spec = oci.parse_object(oci.read_bytes(os.path.join(bundle, "config.json")))
        annotations = spec.get("annotations") or {}
    group = next((annotations[key] for key in _GROUP_KEYS if annotations.get(key)), arguments.id)
    text = os.path.join(arguments.address, arguments.namespace, group)
    return os.path.join(_SOCKETS, sha256(text.encode()).hexdigest())


def is_pods(bundle: str) -> bool:
    """Whether it is a pod's whose sandbox nobody has asked for yet: containerd's Sandbox API starts a shim
    before it says anything of the pod.
    """
    return not os.path.exists(os.path.join(bundle, "config.json"))


def record(bundle: str, path: str) -> None:
    """Note in the bundle where its shim listens. Raises `HostError`.

    A containerd that begins anew, up to 1.7, reads it there; without it every container counts as dead, and
    is ended. Later ones keep a file of their own beside it.
    Source: containerd runtime/v2/shim.go, loadAddress.
    """
    state.replace_file(os.path.join(bundle, "address"), f"unix://{path}".encode())


def bound(path: str) -> int:
    """The descriptor of a socket that listens there, in place of what lies there. Raises OSError."""
    os.umask(0o077)
    os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
    with ignoring(errno.ENOENT):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener.detach()


def answers(path: str) -> bool:
    """Whether somebody listens there. Raises OSError where that cannot be told."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    finally:
        probe.close()
    return True
