"""A small root file system of this machine's own interpreter, shell and libraries: a base image without a registry."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support.programs import need

_PROGRAMS = ("sh", "env", "cat", "mkdir", "chown", "rm", "ls", "id")
# What wheels take for granted on every system: PEP 600, manylinux.
_LIBRARIES = (
    *("libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "librt.so.1", "libdl.so.2", "libpthread.so.0"),
    *("libutil.so.1", "libresolv.so.2", "libnss_files.so.2", "libnss_dns.so.2"),
)
_IGNORED = ("site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "tkinter", "*.a", "config-*")
_DEBIAN_WHEELS = "/usr/share/python-wheels"  # where Debian's ensurepip has pip


def make_rootfs(directory: Path) -> None:
    """Fill an empty directory. `python3`, `sh` and a few more are in PATH there, whoever runs them."""
    for name in ("bin", "etc", "proc", "sys", "dev", "run", "usr/local/bin", "usr/bin", "var/lib"):
        (directory / name).mkdir(parents=True)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o755)):
        (directory / name).mkdir()
        (directory / name).chmod(mode)
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\n")
    interpreter = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined] # not that of the environment
    _copy(interpreter, directory)
    (directory / "usr/local/bin/python3").symlink_to(interpreter)
    for program in _PROGRAMS:
        path = shutil.which(program)
        assert path is not None
        _copy(os.path.realpath(path), directory)
        (directory / "bin" / program).unlink(missing_ok=True)
        (directory / "bin" / program).symlink_to(os.path.realpath(path))
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, directory / library.relative_to("/"), ignore=shutil.ignore_patterns(*_IGNORED))
    for module in (directory / library.relative_to("/")).glob("lib-dynload/*.so"):
        _copy_libraries(str(module), directory)
    known = subprocess.run([need("ldconfig"), "-p"], capture_output=True, text=True, check=True).stdout
    for line in known.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.split(" ")[0] in _LIBRARIES and not (directory / path[1:]).exists():
            _copy(path, directory)
    if os.path.isdir(_DEBIAN_WHEELS):
        shutil.copytree(_DEBIAN_WHEELS, directory / _DEBIAN_WHEELS[1:])


def _copy(path: str, directory: Path) -> None:
    place = directory / path[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, place)
    _copy_libraries(path, directory)


def _copy_libraries(path: str, directory: Path) -> None:
    told = subprocess.run(["ldd", path], capture_output=True, text=True).stdout  # says so, where it is a static one
    for library in re.findall(r"(/\S+) \(0x", told):
        place = directory / library[1:]
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, place)
