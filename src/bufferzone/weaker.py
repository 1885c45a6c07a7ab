"""What makes an annotation's value weaker than this host's, a function for each setting that has to know.

Each is given the host's and the other one, and says why it is refused; empty: it is not.
"""

from __future__ import annotations

from bufferzone import egress as rules

#: weakest first
KVM_POLICIES = ("allow", "warn", "require")


def kvm(host: str, wanted: str) -> str:
    """An order."""
    is_weaker = KVM_POLICIES.index(wanted) < KVM_POLICIES.index(host)
    return f"{wanted} is weaker than this host's policy: {host}" if is_weaker else ""


def accelerator(host: str, wanted: str) -> str:
    """An image carries annotations too: it must not talk its way out of the hardware's wall."""
    return f"tcg is weaker than this host's: {host}" if wanted == "tcg" != host else ""


def vmm(host: str, wanted: str) -> str:
    """The one that is no wall is for no annotation."""
    return "host is no wall, and a settings file's alone to choose" if wanted == "host" else ""


def egress(host: list[str], wanted: list[str]) -> str:
    """Each rule has to lie in one of the host's."""
    beyond = rules.beyond(wanted, host) if host else ""
    return f"{beyond} lies in none of this host's rules" if beyond else ""


def faster(host: int, wanted: int) -> str:
    """More a second, or no limit (0)."""
    return f"this host's limit is {host}" if host and not 0 < wanted <= host else ""


def recorder(host: bool, wanted: bool) -> str:
    """What a host records it always does."""
    return "this host records what becomes of its containers" if host and not wanted else ""
