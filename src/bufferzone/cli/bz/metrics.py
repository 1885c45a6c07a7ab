"""`bz metrics`: what runs on this machine, in Prometheus' text format, as the shims' records have it.

Nobody is asked, so it costs containers nothing: state files are read, and /proc for memory. For the textfile
collector of node_exporter, or whoever serves files. Source: Prometheus, exposition formats, text 0.0.4.
"""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.bz import roots
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

    #: (name, labels) -> value
    Samples = dict[tuple[str, tuple[tuple[str, str], ...]], int]

FLAGS = ()
USAGE = ""
DESCRIPTION = (
    "Containers of this root, and for the machine's root of containerd's namespaces too. Memory is the "
    "proportional set size of shim, VMM and virtiofsd; that of a VMM contains the guest's."
)
WORDS = (0, 0)
INTERSPERSED = True

_HELP = {
    "bufferzone_containers": "Containers by the state root that they are in and their status.",
    "bufferzone_sandboxes": "Sandboxes whose shim lives, by how their VM came and what runs it.",
    "bufferzone_failed_containers": "Containers whose sandbox failed, which are still to be deleted.",
    "bufferzone_egress_denied_packets": "Packets that egress policies refused, of the containers there are.",
    "bufferzone_memory_bytes": "Memory of the processes of all sandboxes, by process.",
}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    output.print_text(text_of(_samples(options.root)))
    return 0


def text_of(samples: Samples) -> str:
    """All metrics with their help; one without a sample is 0."""
    lines = []
    for name, told in _HELP.items():
        lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge"]
        found = {labels: value for (metric, labels), value in samples.items() if metric == name}
        for labels, value in sorted(found.items()) or [((), 0)]:
            inner = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels)
            lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
    return "\n".join([*lines, ""])


def _samples(flag: str) -> Samples:
    samples: Samples = {}

    def add(name: str, value: int = 1, **labels: str) -> None:
        key = name, tuple(labels.items())
        samples[key] = samples.get(key, 0) + value

    shims: set[int] = set()
    for root, directory, found in roots.containers(flag):
        notes = found["annotations"]
        add("bufferzone_containers", root=root, status=found["status"])
        if notes.get("bufferzone.failure"):
            add("bufferzone_failed_containers")
        denied = str(notes.get("bufferzone.egress-denied", "0"))
        add("bufferzone_egress_denied_packets", int(denied) if denied.isdecimal() else 0)
        shim = state.owner_pid(directory)
        if not shim or shim in shims:
            continue
        shims.add(shim)
        kinds = {key: str(notes.get(f"bufferzone.{key}", "")) for key in ("start", "accelerator")}
        add("bufferzone_sandboxes", 1, **kinds)
        for pid in {shim, *_helpers(directory)}:
            name, size = _memory(pid)
            add("bufferzone_memory_bytes", size, process="shim" if pid == shim else name)
    return samples


def _helpers(directory: str) -> list[int]:
    """Pids of VMM and virtiofsd that live."""
    try:
        rows = state.read_leftovers(directory).get("processes", [])
    except (BufferzoneError, ValueError):
        return []
    return [pid for pid, start in rows if state.process_alive(pid, start)]


def _memory(pid: int) -> tuple[str, int]:
    """Its name, and its proportional set size in bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            name = file.read().strip()
        with open(f"/proc/{pid}/smaps_rollup") as file:
            rows = dict(line.split(":", 1) for line in file if line.startswith("Pss:"))
    except OSError:
        return "gone", 0
    return name, int(rows.get("Pss", "0 kB").split()[0]) * 1024
