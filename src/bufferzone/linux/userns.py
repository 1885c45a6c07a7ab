"""What an ordinary user lacks for a user namespace, as advice. Source: user_namespaces(7), subuid(5)."""

from __future__ import annotations

import os
import pwd

#: (file, what it reads where the kernel refuses, what turns it on); Debian's and Ubuntu's own switches too
_SWITCHES = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
     "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
)  # fmt: skip
_PROGRAMS = ("newuidmap", "newgidmap")
_SUBORDINATE = ("/etc/subuid", "/etc/subgid")
_PATH = "/usr/bin:/bin:/usr/local/bin"
_WAY = "podman unshare bufferzone ..."


def advice() -> str:
    """How this user, who is not root, gets a user namespace to run us in: what is missing comes first."""
    if off := switched_off():
        return f"{off}; then {_WAY}"
    for program in _PROGRAMS:
        if not any(os.access(f"{directory}/{program}", os.X_OK) for directory in _PATH.split(":")):
            return f"{program} is missing: apt-get install uidmap; then {_WAY}"
    user = _user()
    for path in _SUBORDINATE:
        names = {line.split(":")[0] for line in _read(path).splitlines()}
        if not names & {user, str(os.getuid())}:
            return (
                f"{path} has no ids for {user}: as root, usermod --add-subuids 100000-165535 "
                f"--add-subgids 100000-165535 {user}; then {_WAY}"
            )
    return f"without root, use a user namespace: {_WAY}"


def switched_off() -> str:
    """Which switch keeps user namespaces from ordinary users, and what turns it on; empty: none does."""
    for path, off, remedy in _SWITCHES:
        if _read(path).strip() == off:
            return f"user namespaces are switched off: as root, {remedy}"
    return ""


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""  # a kernel without that switch, a machine without that file
