"""The direction of imports, as ARCHITECTURE.md has it: who reads one layer need not know those above."""

from __future__ import annotations

import ast
import sys

from style.source import imports, package, report

#: lowest first; the names are the first path component below src/bufferzone
LAYERS = (
    (
        "errors",
        "record",
        "model",
        "log",
        "jsontext",
        "digest",
        "programs",
        "linux",
        "egress",
        "toml",
        "vmmfeatures",
        "weaker",
        "setting",
        "settings_file",
    ),
    ("wire", "oci", "config", "recorder", "spawn", "systemd"),
    ("allowlists", "jail", "state", "counters", "container"),
    ("vmmstore",),
    ("vmm", "storage", "network", "guestimage", "images", "client", "guest"),
    ("vm", "workload", "audit"),
    ("snapshot",),
    ("sandbox", "library"),
    ("cli",),  # bz is the library's face at a terminal
    ("shim", "bench"),
    ("pool",),
    ("aio", "adapters", "__init__"),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
#: units of one layer that do not know each other
INDEPENDENT = {*LAYERS[4], "sandbox", "library", "shim", "bench"}

#: unit -> the only units that may import it
ONLY_IMPORTED_BY = {
    "guest": {"guest"},  # the wall is a directory: that code runs inside the VM
    "container": {"container", "guest"},
    # bench drives a bare VM by hand: the floor that a start is measured against
    "vmm": {"vmm", "vm", "snapshot", "sandbox", "bench", "pool"},
    "storage": {"storage", "vm", "snapshot", "sandbox", "bench", "pool"},
    "network": {"network", "vm", "snapshot", "sandbox", "pool"},
    "sandbox": {"sandbox", "shim", "bench", "pool"},
    "shim": {"shim", "pool"},
    "pool": {"pool"},
    "adapters": {"adapters"},
    "bench": {"bench"},
}
#: unit -> the only units of ours that it may import
ONLY_IMPORTS = {
    "errors": {"errors"},
    "linux": {"linux", "record", "errors"},
    "wire": {"wire", "errors"},
    # what travels into the guest image
    "container": {"container", "wire", "linux", "errors"},
    "guest": {"guest", "container", "wire", "linux", "errors"},
}
#: modules below cli/ that may import guestimage: `bz setup` builds the guest image
IMAGE_FOR_CLI = ("cli/bz/",)

#: an extra of pyproject.toml -> the one module that imports it
ADAPTERS = {"mcp": "adapters/mcp_server.py", "pytest": "adapters/pytest_plugin.py"}

#: too slow for a command of 15 ms, and for an agent that starts under emulation
HEAVY = {"typing", "dataclasses", "re", "asyncio", "enum", "argparse", "logging", "subprocess"}


def _unit(target: str) -> str:
    return target.split(".")[1] if "." in target else ""


def _ours(source):
    for found in imports(source):
        if found.target == "bufferzone" or found.target.startswith("bufferzone."):
            yield found, _unit(found.target)


def test_every_module_has_a_row_in_the_layers_table():
    report([f"{s.name}:1: unit {s.unit!r} is in no layer" for s in package() if s.unit not in LEVEL])


def test_a_lower_layer_never_imports_a_higher_one():
    findings = []
    for source in package():
        for found, unit in _ours(source):
            above = LEVEL.get(unit, 99) > LEVEL.get(source.unit, 99)
            if unit and above:
                findings.append(source.at(found.node, f"{source.unit} imports {unit}, which lies above it"))
    report(findings)


def test_neighbours_that_should_not_know_each_other_do_not():
    findings = []
    for source in package():
        for found, unit in _ours(source):
            strangers = {source.unit, unit} <= INDEPENDENT and LEVEL[source.unit] == LEVEL[unit]
            if strangers and source.unit != unit:
                findings.append(source.at(found.node, f"{source.unit} imports its neighbour {unit}"))
    report(findings)


def test_what_only_some_may_import_is_imported_by_them_alone():
    findings = []
    for source in package():
        for found, unit in _ours(source):
            allowed = source.unit in ONLY_IMPORTED_BY.get(unit, {source.unit})
            if not allowed:
                findings.append(source.at(found.node, f"only {ONLY_IMPORTED_BY[unit]} may import {unit}"))
            if unit and unit not in ONLY_IMPORTS.get(source.unit, {unit}):
                findings.append(source.at(found.node, f"{source.unit} may not import {unit}"))
            if unit == "guestimage" and source.unit == "cli" and not source.within(*IMAGE_FOR_CLI):
                findings.append(source.at(found.node, "an OCI verb does not import guestimage"))
    report(findings)


def test_the_package_imports_the_standard_library_only():
    findings = []
    for source in package():
        for found in imports(source):
            name = found.target.split(".")[0]
            allowed = name == "rich" and source.within("cli/bz/")  # a person waits there anyway
            allowed |= ADAPTERS.get(name) == source.module
            allowed |= name == "matplotlib" and source.module == "bench/plot.py"  # where it is installed
            allowed |= name in ("_sha2", "_sha256") and source.module == "digest.py"  # by version of Python
            if name not in sys.stdlib_module_names and name != "bufferzone" and not allowed:
                findings.append(source.at(found.node, f"{name} is not in the standard library"))
    report(findings)


def test_wire_and_guest_and_all_they_import_import_nothing_slow():
    modules = {"bufferzone." + s.module.removesuffix(".py").replace("/", "."): s for s in package()}
    pending = [name for name, source in modules.items() if source.unit in ("wire", "guest", "container")]
    seen, findings = set(pending), []
    while pending:
        source = modules[pending.pop()]
        for found in imports(source):
            if found.runs and found.target.split(".")[0] in HEAVY:
                findings.append(source.at(found.node, f"imports {found.target} at run time"))
            if found.runs and found.target in modules and found.target not in seen:
                seen.add(found.target)
                pending.append(found.target)
    report(findings)


def test_nothing_imports_asyncio():
    report(
        [
            s.at(i.node, "imports asyncio")
            for s in package()
            for i in imports(s)
            if i.target.startswith("asyncio") and s.module != "aio.py"  # which is for those who have it
        ]
    )


def test_one_module_knows_which_vmms_there_are_and_nobody_else_knows_qemu():
    """bench/ measures QEMU by hand, under our own and beside it."""
    findings = []
    for source in package():
        if source.within("vmm/qemu/", "bench/", "vmm/drivers.py"):
            continue
        for found, _ in _ours(source):
            if found.target.startswith("bufferzone.vmm.qemu"):
                findings.append(source.at(found.node, "imports QEMU's driver: see vmm/interface.py"))
        for node in ast.walk(source.tree):
            name = getattr(node, "attr", getattr(node, "id", ""))
            if isinstance(name, str) and ("qmp" in name.lower() or "qemu" in name.lower()):
                findings.append(source.at(node, f"{name}: a name of QEMU's"))
    report(findings)


def _module(source):
    return "bufferzone." + source.module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_no_module_imports_itself_by_way_of_others():
    """Imports for types count, and those inside functions: what cannot be read alone is one module."""
    names = {_module(source): source for source in package()}
    graph = {
        name: {found.target for found, _ in _ours(source) if found.target in names and found.target != name}
        for name, source in names.items()
    }
    report([f"a cycle of imports: {' -> '.join(cycle)}" for cycle in _cycles(graph)])


def _cycles(graph):
    """One cycle of each knot: what is left when modules that import nothing of the rest are taken away."""
    left = dict(graph)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    while left:
        path = [next(iter(left))]
        while (following := next(iter(sorted(left[path[-1]] & left.keys())))) not in path:
            path.append(following)
        cycle = path[path.index(following) :]
        yield [*cycle, following]
        for name in cycle:
            del left[name]
        while free := [name for name, targets in left.items() if not targets & left.keys()]:
            for name in free:
                del left[name]
