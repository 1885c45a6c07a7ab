"""The guest's Python: what it gets of the standard library, how it is compiled, the proof that it suffices.

Compiling and proving are done by the packaged interpreter itself, run from a scratch directory on its own C
library: so the byte code is the guest's whatever Python the host has, and a missing file shows at build
time, not at boot.
"""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
import tempfile

from bufferzone.errors import HostError
from bufferzone.guestimage import apt

META_PACKAGE = "python3-minimal"
#: without the version that the package's file has in its name: whoever starts it need not know that
EXECUTABLE = "/usr/bin/python3"
_NAMED = re.compile(r"python(?P<version>3\.\d+)-minimal")
LOADER = "/lib64/ld-linux-x86-64.so.2"
LIBRARY_PATH = "/lib/x86_64-linux-gnu"

#: Modules and packages (ending in a slash) that the guest may import; what the interpreter has built in is
#: not listed, and no release has all of these. It gets those that the agent's imports load, which is proven.
_STANDARD_LIBRARY = """
    __future__ _collections_abc _colorize _compat_pickle _opcode_metadata _py_warnings _sitebuiltins
    _weakrefset abc annotationlib ast base64 bisect codecs collections/ contextlib copy copyreg
    ctypes/ dataclasses dis enum fnmatch functools genericpath glob heapq importlib/ inspect io
    ipaddress json/ keyword linecache locale opcode operator os pathlib pathlib/ posixpath pty queue
    random re/ reprlib selectors shutil signal socket stat string string/ struct subprocess
    sysconfig/ tempfile textwrap threading token tokenize traceback tty types typing uuid warnings
    weakref
"""
STANDARD_LIBRARY = frozenset(_STANDARD_LIBRARY.split())
#: Codecs: what the interpreter asks for at start, and what programs in a container may have in their names.
ENCODINGS = ("__init__", "aliases", "ascii", "latin_1", "utf_8")
#: Extension modules that are files.
EXTENSIONS = ("_contextvars", "_ctypes", "_json", "_queue", "_typing", "mmap", "resource", "termios")
#: Left out of the packages above: never wanted in a guest, or of other systems.
_LEFT_OUT = ("/ctypes/macholib/", "/ctypes/test/", "/json/tool.py", "/importlib/metadata/")

# PEP 552: magic, flags 1 (hash-based, never checked), and a hash that nobody will look at. optimize=2 leaves
# docstrings out, which would lie in every guest's memory; what ours asserts is for type checkers
_COMPILE = """
import importlib.util, json, marshal, sys
for source, target, shown in json.load(sys.stdin):
    with open(source, "rb") as file:
        code = compile(file.read(), shown, "exec", dont_inherit=True, optimize=2)
    with open(target, "wb") as file:
        file.write(importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code))
"""
# a library that the host would lend must fail the build, so every mapped file has to lie below the scratch
# root
_PROVE = """
import sys
root, *names = sys.stdin.read().split()
sys.path.append(root + "/usr/lib/bufferzone")
for name in names:
    __import__(name)
for line in open("/proc/self/maps"):
    path = line.split(None, 5)[5].strip() if line.count(" ") > 4 and "/" in line else ""
    if ".so" in path and not path.startswith(root):
        raise ImportError("%s is not in the image" % path)
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""


def packages() -> list[str]:
    """The packages of the Python that this release of the distribution has; asks apt's lists."""
    return packages_of(apt.one_needed_by(META_PACKAGE, _NAMED.pattern))


def packages_of(interpreter: str) -> list[str]:
    """The packages that belong to an interpreter's, python3.11-minimal or the like."""
    return [interpreter, f"lib{interpreter}", f"lib{interpreter.removesuffix('minimal')}stdlib"]


def interpreter_among(found: list[apt.Package]) -> apt.Package | None:
    """The package with the interpreter, if it is one of `found`."""
    return next((package for package in found if _NAMED.fullmatch(package.name)), None)


def guest_path(path: str) -> str:
    """Where a file of the Python packages lies in the guest, or nothing when it does not belong there."""
    if re.fullmatch(r"/usr/bin/python3\.\d+", path):
        return EXECUTABLE
    inner = re.fullmatch(r"/usr/lib/python3\.\d+/(.*)", path)
    return path if inner and _is_wanted(path, inner[1]) else ""


def _is_wanted(path: str, inner: str) -> bool:
    if any(part in path for part in _LEFT_OUT):
        return False
    top, _, rest = inner.partition("/")
    if top == "lib-dynload":
        return rest.split(".", 1)[0] in EXTENSIONS
    if top == "encodings":
        return rest.removesuffix(".py") in ENCODINGS
    return inner.endswith(".py") and (f"{top}/" in STANDARD_LIBRARY if rest else top[:-3] in STANDARD_LIBRARY)


def compile_all(sources: dict[str, bytes], root: str) -> dict[str, bytes]:
    """Byte code for `sources` (guest path of a .py -> text), keyed by the path of the .pyc replacing it.

    `root` is a scratch directory that holds the whole interpreter. Errors: `HostError` (`guest-python`).
    """
    work = tempfile.mkdtemp(prefix="compile-", dir=root)
    jobs = []
    for number, (path, text) in enumerate(sorted(sources.items())):
        source, target = os.path.join(work, f"{number}.py"), os.path.join(work, f"{number}.pyc")
        with open(source, "wb") as file:
            file.write(text)
        jobs.append((source, target, path))
    _python(root, _COMPILE, json.dumps(jobs), "the agent does not compile for the guest")
    compiled = {}
    for _, target, path in jobs:
        with open(target, "rb") as file:
            compiled[path + "c"] = file.read()  # os.pyc beside no os.py is imported as it is (PEP 3147)
    return compiled


def prove(root: str, modules: list[str]) -> set[str]:
    """Import every module with the pruned tree `root`; returns the guest paths of the files that this loaded.

    Raises `HostError` (`guest-python`) if one fails.
    """
    said = _python(root, _PROVE, "\n".join([root, *modules]), "the guest's Python lacks something")
    return {path.removeprefix(root) for path in said.splitlines()}


def is_always_kept(path: str) -> bool:
    """Whether a file of the standard library stays though the agent's imports did not load it.

    A codec, and the mark by which the interpreter finds its library (Modules/getpath.py: STDLIB_LANDMARKS).
    """
    inner = path.split("/", 4)[4]
    return inner.startswith("encodings/") or inner == "os.pyc"


def _python(root: str, program: str, data: str, complaint: str) -> str:
    argv = [root + LOADER, "--inhibit-cache", "--library-path", root + LIBRARY_PATH, root + EXECUTABLE]
    env = {"PYTHONHOME": root + "/usr", "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0"}
    try:
        said = apt.pipe([*argv, "-S", "-B", "-P", "-c", program], data.encode(), env=env)
    except HostError as error:
        raise HostError(f"{complaint}: {error.message.partition(': ')[2]}", code="guest-python") from error
    return said.decode()


def imports_of(sources: dict[str, bytes], package_root: str) -> list[str]:
    """Every module that the agent's sources import, wherever the import stands, and the sources themselves.

    Imports below `if TYPE_CHECKING:` are only for the type checker and left out.
    """
    found = set()
    for path, text in sources.items():
        module = (
            posixpath.relpath(path, package_root)
            .removesuffix(".py")
            .replace("/", ".")
            .removesuffix(".__init__")
        )
        found.add(module)
        pending: list[ast.AST] = [ast.parse(text)]
        while pending:
            node = pending.pop()
            if (
                isinstance(node, ast.If)
                and isinstance(node.test, ast.Name)
                and node.test.id == "TYPE_CHECKING"
            ):
                pending.extend(node.orelse)
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            pending.extend(ast.iter_child_nodes(node))
    return sorted(found)
