"""The kernels of app/engine/resize.cu, compiled for this CPU by the system's C++ compiler."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from app.engine.jpeg import SOURCE

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


class CpuKernels:
    """Runs a kernel as a function that handles all items, on the calling thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def launch(self, name: str, items: int, *arguments: int) -> None:
        self._library[name](*map(ctypes.c_int64, arguments))


@functools.cache
def cpu_kernels() -> CpuKernels:
    assert COMPILER
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "resize.so")
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++"]
        subprocess.run([COMPILER, *options, "-o", library, SOURCE], check=True)
        return CpuKernels(ctypes.CDLL(str(library)))
