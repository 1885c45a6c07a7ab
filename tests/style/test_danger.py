"""Danger has one address: where C is called, where programs start. Each exception carries its reason."""

from __future__ import annotations

import ast
import re

from style.source import dotted, everything, imports, names_used, package, report

#: module -> why it starts a program or forks, instead of leaving it to spawn.py
STARTS_PROGRAMS = {
    "spawn.py": "the one way to start a helper of the host",
    "adapters/executor.py": "starts none: concurrent.futures, whose face it has",
    "aio.py": "starts none: concurrent.futures, for its threads",
    "snapshot/template.py": "the maker outlives the sandbox whose shim starts it; posix_spawn only",
    "snapshot/copier.py": "writes a checkpoint outside of the container's cgroup; posix_spawn only",
    "sandbox/hooks.py": "OCI hooks run as the bundle names them, with the caller's rights; posix_spawn only",
    "network/nft.py": "nft, from a thread that is in the network namespace meant; posix_spawn only",
    "guestimage/apt.py": "apt and dpkg-deb while an image is built; nothing of a sandbox is running",
    "images/skopeo.py": "skopeo with the caller's rights, credentials and proxies; posix_spawn only",
    "client/start.py": "`create` starts the shim and the pool's keeper as itself, detached; posix_spawn only",
    "client/imagedisk.py": "`bz run --disk` runs the shim's program, which has one thread and may mount",
    "client/template.py": "`make` runs the shim's program, which alone boots VMs",
    "cli/bz/engine_check.py": "ctr, docker, systemctl, as a person calls them, for a container of the engine",
    "cli/bz/bench.py": "becomes the program that measures, which is above the commands",
    "cli/bz/audit.py": "--measure becomes the program that measures, which is above the commands",
    "cli/bz/drill.py": "becomes the program that attacks, which is above the commands",
    "bench/programs.py": "the runtimes that are measured; posix_spawn only",
    "bench/floor.py": "QEMU and virtiofsd with nothing around them: what our own start is measured against",
    "client/waiter_root.py": "the waiter, where it cannot have a PID namespace",
    "client/detach.py": "the pid of --pid-file: must be an orphan of the verb, so that the caller reaps it",
    "linux/pidns.py": "a fork into a new PID namespace, for spawn.py and the waiter",
    "linux/kvm.py": "probes KVM in a child, which may be killed when the probe hangs",
    "pool/daemon.py": "the keeper starts shims that wait, which outlive it once taken; posix_spawn only",
    "shim/start.py": "the shim leaves its caller: double fork",
    "shim/loggers.py": "binary:// log programs of containerd's callers, with their rights; posix_spawn only",
    "shim/stand_ins.py": "what stands for a task on the host: a fork costs a millisecond, a program forty",
    "container/child.py": "inside the VM: a container's process, and a second fork into its PID namespace",
    "container/launch.py": "inside the VM: a container's process",
    "container/zygote.py": "inside the VM: the child that waits for the next process",
    "container/hooks.py": "inside the VM: startContainer hooks",
    "container/program.py": "inside the VM: the exec of the container's process",
    "guest/modprobe.py": "inside the VM: modprobe, for a template, a NIC, the balloon; posix_spawn only",
    "container/netfilter.py": "inside the VM: modprobe for the tables of iptables; posix_spawn only",
}

_STARTS = re.compile(
    r"(subprocess|multiprocessing|pty)(\.|$)|concurrent\.futures|os\.(fork|forkpty|posix_spawnp?|system|popen)$"
    r"|os\.(exec|spawn)[lv]p?e?$"
)


def test_only_listed_modules_start_programs():
    findings = []
    for source in package():
        for node, name in names_used(source):
            if _STARTS.match(name) and source.module not in STARTS_PROGRAMS:
                findings.append(source.at(node, f"{name}: start programs through spawn.py"))
    report(findings)


def test_the_list_of_modules_that_start_programs_is_true():
    findings = []
    modules = {source.module: source for source in package()}
    for module in STARTS_PROGRAMS:
        source = modules.get(module)
        if source is None or not any(_STARTS.match(name) for _, name in names_used(source)):
            findings.append(f"{module}:1: starts nothing any more, remove it from STARTS_PROGRAMS")
    report(findings)


def test_ctypes_is_imported_in_linux_alone():
    findings = []
    for source in package():
        for node, name in names_used(source):
            foreign = name.split(".")[0] in ("ctypes", "_ctypes", "cffi") or name == "fcntl.ioctl"
            if foreign and not source.within("linux/"):
                findings.append(source.at(node, f"{name}: C calls and ioctl live in linux/"))
    report(findings)


def test_there_is_no_shell():
    findings = []
    for source in everything():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            if dotted(node.func) in ("os.system", "os.popen", "subprocess.getoutput"):
                findings.append(source.at(node, f"{dotted(node.func)}: no shell"))
            for keyword in node.keywords:
                literal = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg == "shell" and not literal:
                    findings.append(source.at(node, "shell=True: no shell"))
    report(findings)


#: programs that run in a sandbox, as text; nobody imports them
IN_SANDBOXES = "adapters/inside/"
#: what goes into a sandbox may be a pickle; what comes out of one never is
PICKLES = {("adapters/executor.py", name) for name in ("pickle", "pickle.dumps", "pickle.PicklingError")}


def test_programs_for_sandboxes_are_imported_by_nobody():
    found = [
        source.at(each.node, f"imports {each.target}")
        for source in package()
        for each in imports(source)
        if each.target.startswith("bufferzone.adapters.inside.")
    ]
    report(found)


def test_nothing_is_evaluated_or_unpickled():
    findings = []
    for source in package():
        for node in ast.walk(source.tree):
            text = isinstance(node, ast.Call) and dotted(node.func) in ("eval", "exec", "compile")
            if text and not source.within(IN_SANDBOXES):
                findings.append(source.at(node, f"{dotted(node.func)}: text never becomes code"))
        for node, name in names_used(source):
            ours = source.within("guestimage/", IN_SANDBOXES) or (source.module, name) in PICKLES
            if name.split(".")[0] in ("pickle", "marshal", "shelve") and not ours:
                findings.append(source.at(node, f"{name}: loads code, not data"))
    report(findings)
