"""The guest's root file system as a list of entries: Python, agent, modules, device nodes, directories.

Nothing else is in it: no shell, no busybox, no package manager. What is not there cannot be used against
the guest.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import tempfile
import zlib

from bufferzone.errors import HostError
from bufferzone.guestimage import agent, apt, loadable, modules, python
from bufferzone.guestimage.cpio import Entry, character_device, directory, regular, symlink
from bufferzone.guestimage.recipe import Kernel

#: where the interpreter's shared libraries come from
LIBRARY_PACKAGES = ("libc6", "libexpat1", "libffi8", "zlib1g")
#: shared libraries of the interpreter and of its _ctypes; each is stored under its soname
_LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8")

#: what the agent must have before it can answer: the bus, the console port, then the file sharing that
#: comes next; pvpanic is how a kernel that panics says so to QEMU
BOOT_MODULES = ("virtio_pci", "virtio_console", "fuse", "virtiofs", "pvpanic_pci")
#: what the agent loads for a device, and most containers of containers use: uncompressed, so that it is quick
OPTIONAL_MODULES = (
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "virtio_rng",
    "overlay",
    "erofs",
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "tun",
    "veth",
    "bridge",
)

_DIRECTORIES = ("/dev", "/etc", "/mnt", "/proc", "/root", "/run", "/sys", "/var")
_MERGED = ("bin", "lib", "lib64", "sbin")


def packages() -> list[str]:
    """All that the tree is made of but the kernel, as the distribution's release names it."""
    return [*LIBRARY_PACKAGES, *python.packages()]


def is_complete(found: list[apt.Package]) -> bool:
    """Whether `found` are the packages of one tree, of whatever release."""
    interpreter = python.interpreter_among(found)
    if interpreter is None:
        return False
    return {*LIBRARY_PACKAGES, *python.packages_of(interpreter.name)} <= {package.name for package in found}


def python_files(packages: list[apt.Package], cache: str) -> dict[str, tuple[int, bytes]]:
    """Guest path -> (permissions, bytes) of all that the guest takes from the Python and library packages."""
    found: dict[str, tuple[int, bytes]] = {}
    links: dict[str, str] = {}
    for package in packages:
        if package.name.startswith("linux-"):
            continue
        for member, data in apt.contents(package, cache):
            _take(member, data, found, links)
    for name in _LIBRARIES:
        path = _soname_path(name, found, links)
        found[f"{python.LIBRARY_PATH}/{name}"] = found[path]
    keep = {f"{python.LIBRARY_PATH}/{name}" for name in _LIBRARIES} | {python.LOADER}
    wanted = {path: path if path in keep else python.guest_path(path) for path in found}
    return {guest_path: found[path] for path, guest_path in wanted.items() if guest_path}


def _take(
    member: tarfile.TarInfo, data: bytes, found: dict[str, tuple[int, bytes]], links: dict[str, str]
) -> None:
    path = member.name
    if ".so" in path and path.startswith(("/lib/", "/usr/lib/x86_64-linux-gnu/")):
        path = f"{python.LIBRARY_PATH}/{posixpath.basename(path)}"
    if posixpath.basename(path) == posixpath.basename(python.LOADER) and not member.issym():
        path = python.LOADER
    if member.issym():
        links[path] = posixpath.join(posixpath.dirname(path), posixpath.basename(member.linkname))
    else:
        found[path] = (member.mode & 0o777, data)


def _soname_path(name: str, found: dict[str, tuple[int, bytes]], links: dict[str, str]) -> str:
    path = f"{python.LIBRARY_PATH}/{name}"
    path = links.get(path, path)
    if path not in found:
        raise HostError(f"the packages hold no {name}", code="package-damaged")
    return path


def compiled(files: dict[str, tuple[int, bytes]], sources: dict[str, bytes], scratch: str) -> list[Entry]:
    """Python and agent as entries, sources turned into byte code, proven to import what the agent names.

    Of the standard library stays what that loads. `scratch` is a directory to run the guest's interpreter in.
    """
    with tempfile.TemporaryDirectory(prefix="python-", dir=scratch) as root:
        for path, (mode, data) in files.items():
            _put(root + path, data, mode)
        library = {path: data for path, (_, data) in files.items() if path.endswith(".py")}
        code = python.compile_all(library, root)
        code |= python.compile_all(sources, root)
        for path, data in code.items():
            _put(root + path, data, 0o644)
        for path in library:
            os.unlink(root + path)
        idle = _idle(python.prove(root, python.imports_of(sources, agent.ROOT)), {*files, *code} - {*library})
        for path in idle:
            os.unlink(root + path)
        python.prove(root, python.imports_of(sources, agent.ROOT))
    entries = [regular(path, data) for path, data in code.items() if path not in idle]
    for path, (mode, data) in files.items():
        if path not in library and path not in idle:
            entries.append(regular(_merged(path), data, mode))
    return entries


def _idle(loaded: set[str], there: set[str]) -> set[str]:
    """Those files of the standard library that no import of the agent loads."""
    standard = {path for path in there if path.startswith("/usr/lib/python3")}
    return {path for path in standard - loaded if not python.is_always_kept(path)}


def _put(path: str, data: bytes, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def _merged(path: str) -> str:
    top = path.split("/", 2)[1]
    return "/usr" + path if top in _MERGED else path


def of_kernel(kernel: Kernel) -> list[Entry]:
    """/init for this kernel, and its modules where it can load any."""
    found = module_entries(kernel)
    if not kernel.modules:
        return [*found, regular("/init", agent.INIT, 0o755)]
    modprobe = regular(agent.MODPROBE, agent.modprobe(), 0o755)
    return [*found, modprobe, regular("/init", agent.INIT_WITH_MODULES, 0o755)]


def module_entries(kernel: Kernel) -> list[Entry]:
    """The modules and the two lists that tell about them; a module that is built into the kernel is in none.

    `modules`: one absolute path a line, in load order. `modules.dep`: a name or alias, then the names of the
    modules to load for it, in order. Those that few need are deflated (NAME.ko.z); zlib's output for one
    level has not changed in twenty years, so that two machines make the same image.
    """
    boot = modules.load_order(BOOT_MODULES, kernel.modules, kernel.builtin)
    plain = modules.load_order(BOOT_MODULES + OPTIONAL_MODULES, kernel.modules, kernel.builtin)
    wanted = (*BOOT_MODULES, *OPTIONAL_MODULES, *loadable.names(kernel.modules))
    place = f"/usr/lib/modules/{kernel.release}"
    entries, table = [], []
    for name in modules.load_order(wanted, kernel.modules, kernel.builtin):
        data, needed = kernel.modules[name], modules.load_order((name,), kernel.modules, kernel.builtin)
        if name in plain:
            entries.append(regular(f"{place}/{name}.ko", data))
        else:
            entries.append(regular(f"{place}/{name}.ko.z", zlib.compress(data, 6)))
        table += [" ".join([key, *needed]) for key in (name, *modules.aliases(data))]
    return [
        *entries,
        regular("/etc/bufferzone/modules", _lines([f"{place}/{name}.ko" for name in boot])),
        regular("/etc/bufferzone/modules.dep", _lines(table)),
    ]


def skeleton() -> list[Entry]:
    """Directories, the links of a merged /usr, the device nodes needed before devtmpfs."""
    return [
        *(directory(path) for path in _DIRECTORIES),
        directory("/tmp", 0o1777),
        *(directory(f"/usr/{name}") for name in _MERGED),
        *(symlink(f"/{name}", f"usr/{name}") for name in _MERGED),
        # the kernel opens /dev/console for PID 1 before anybody can mount devtmpfs
        character_device("/dev/console", 5, 1, 0o600),
        character_device("/dev/null", 1, 3, 0o666),
    ]


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
