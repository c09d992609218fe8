"""Compiles CUDA kernels at run time with NVRTC, which needs no compiler on the machine, and launches them.

NVIDIA's own bindings are used: torch requires them in its CUDA builds for Linux. ``torch.cuda._compile_kernel`` is
private, and needs an installed CUDA toolkit.
"""

import ctypes
from typing import Any

import torch
from cuda.bindings import driver, nvrtc

_THREADS = 256  # per block
_MAX_BLOCKS = 2**16  # the kernels loop over the items that are left


def compiled(source: bytes, capability: tuple[int, int]) -> bytes:
    """Compile kernels for GPUs of this compute capability. Returns the binary. Raises RuntimeError.

    Multiplications and additions are not contracted, so that the results are those of a CPU.
    """
    architecture = "--gpu-architecture=sm_{}{}".format(*capability)
    program = _checked(nvrtc.nvrtcCreateProgram(source, b"", 0, [], []))
    options = [architecture.encode(), b"--fmad=false"]
    status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status.value:
        log = bytes(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"NVRTC cannot compile the kernels: {log.decode()}")
    binary = bytes(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, binary))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return binary


class CudaKernels:
    """Kernels on a CUDA device, launched on the current stream. Thread-safe."""

    def __init__(self, source: bytes, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # creates the context
            binary = compiled(source, torch.cuda.get_device_capability())
            self._module = _checked(driver.cuModuleLoadData(binary))

    def launch(self, name: str, items: int, *arguments: int) -> None:
        blocks = min(-(-items // _THREADS), _MAX_BLOCKS)
        with torch.cuda.device(self._device):
            kernel = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
            stream = torch.cuda.current_stream().cuda_stream
            types = (ctypes.c_int64,) * len(arguments)
            _checked(driver.cuLaunchKernel(kernel, blocks, 1, 1, _THREADS, 1, 1, 0, stream, (arguments, types), 0))


def _checked(result: tuple[Any, ...]) -> Any:
    """The value that a function of the bindings returns beside its status. Raises RuntimeError."""
    status, *values = result
    if status.value:
        raise RuntimeError(f"CUDA error: {status.name}")
    return values[0] if values else None
