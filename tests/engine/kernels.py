"""What decodes JPEGs on a GPU, for this CPU: a decoder of batches, and the kernels of app/engine/resize.cu."""

import ctypes
import functools
import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.engine.jpeg import SOURCE


class CpuKernels:
    """Runs a kernel as a function that handles all items, on the calling thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def launch(self, name: str, items: int, *arguments: int) -> None:
        self._library[name](*map(ctypes.c_int64, arguments))


@functools.cache
def cpu_kernels() -> CpuKernels:
    """Compile the kernels. Skips the test without a compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "resize.so")
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++"]
        subprocess.run([compiler, *options, "-o", library, SOURCE], check=True)
        return CpuKernels(ctypes.CDLL(str(library)))


def cpu_decode(files: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Decode as torchcodec does, which uses libjpeg-turbo on a CPU, too. Raises RuntimeError for a bad file."""
    return list(map(_decode, files))


def _decode(file: torch.Tensor) -> torch.Tensor:
    try:
        with Image.open(io.BytesIO(file.numpy().tobytes()), formats=["JPEG"]) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise RuntimeError("the JPEG is corrupt") from error
