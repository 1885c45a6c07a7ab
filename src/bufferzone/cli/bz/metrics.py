"""`bz metrics`: what runs on this machine, in Prometheus' text format, as the shims' records have it.

Nobody is asked, so it costs containers nothing: state files are read, and /proc for memory. For the textfile
collector of node_exporter, or whoever serves files. Source: Prometheus, exposition formats, text 0.0.4.
"""

from __future__ import annotations

from bufferzone import counters, state
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
    "proportional set size of shim, VMM and virtiofsd; that of a VMM contains the guest's. Starts and "
    "failures are those of all roots since the machine came up."
)
WORDS = (0, 0)
INTERSPERSED = True

_HISTOGRAM = "bufferzone_boot_seconds"
#: name -> (type, what it is)
_COUNTED = {
    "bufferzone_starts_total": ("counter", "Sandboxes that came up since the machine did."),
    _HISTOGRAM: (
        "histogram",
        "How long the phases of a start took; `all` is from the shim's begin to a guest that answers.",
    ),
    "bufferzone_failures_total": ("counter", "Sandboxes that failed, by the code of the error."),
}
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
    output.print_text(text_of(_samples(options.root)) + text_of_counted(counters.read(state.lease_root())))
    return 0


def text_of_counted(series: counters.Series) -> str:
    """Starts and failures that were counted, with their help."""
    lines: dict[str, list[str]] = {name: [] for name in _COUNTED}
    for kind, phase, number, total, buckets in counters.starts(series):
        if phase == counters.WHOLE:
            lines["bufferzone_starts_total"].append(f"bufferzone_starts_total{_labels(start=kind)} {number}")
        below = 0
        bounds = [f"{bound / 1000:g}" for bound in counters.BOUNDS_MS]
        for bound, found in zip([*bounds, "+Inf"], buckets, strict=True):
            below += found
            labels = _labels(start=kind, phase=phase, le=bound)
            lines[_HISTOGRAM].append(f"{_HISTOGRAM}_bucket{labels} {below}")
        labels = _labels(start=kind, phase=phase)
        lines[_HISTOGRAM].append(f"{_HISTOGRAM}_sum{labels} {total / 1000:.4f}")
        lines[_HISTOGRAM].append(f"{_HISTOGRAM}_count{labels} {number}")
    for cause, number in counters.failures(series):
        lines["bufferzone_failures_total"].append(f"bufferzone_failures_total{_labels(cause=cause)} {number}")
    text = []
    for name, (kind, told) in _COUNTED.items():
        text += [f"# HELP {name} {told}", f"# TYPE {name} {kind}", *lines[name]]
    return "\n".join([*text, ""])


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items()) + "}"


def text_of(samples: Samples) -> str:
    """All metrics with their help; one without a sample is 0."""
    lines = []
    for name, told in _HELP.items():
        lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge"]
        found = {labels: value for (metric, labels), value in samples.items() if metric == name}
        for labels, value in sorted(found.items()) or [((), 0)]:
            lines.append(f"{name}{_labels(**dict(labels)) if labels else ''} {value}")
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
