"""Part 0: versions. Part 1: the ceilings of the machine, the largest rates that a program could reach."""

import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata

import torch

from app import __version__, machine
from tests.conftest import REPOSITORY
from tests.gpu.figures import Context, Report

_PACKAGES = ("torchvision", "torchcodec", "timm", "numpy", "pillow", "uvloop")
_REPEATS = 10


def versions(context: Context, report: Report) -> None:
    """Name the card, the driver, and the versions of everything that figures depend on."""
    report("topk", f"{__version__} {_commit()}".strip())
    report("torch", torch.__version__)
    for name in _PACKAGES:
        report(name, _version(name), detail=True)
    report("python", platform.python_version(), detail=True)
    report("processor", machine.processor())
    report("cores", machine.cores())
    report("memory", round(machine.memory_bytes() / 2**30), "GiB", detail=True)
    if not context.cuda:
        return
    card = torch.cuda.get_device_properties(context.device)
    report("card", card.name)
    report("driver", _driver())
    report("card's memory", round(card.total_memory / 2**30, 1), "GiB", detail=True)
    report("multiprocessors", card.multi_processor_count, detail=True)
    report("CUDA", torch.version.cuda, detail=True)
    report("cuDNN", torch.backends.cudnn.version(), detail=True)


def ceilings(context: Context, report: Report) -> None:
    """Measure copies and a matrix product. A copy on the device counts bytes read and bytes written."""
    device, size = torch.device(context.device), 2**22 if context.quick else 2**30
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=context.cuda)
    here, there = (
        torch.empty(size, dtype=torch.uint8, device=device),
        torch.empty(size, dtype=torch.uint8, device=device),
    )
    report("copy on the device", 2 * size / seconds(lambda: there.copy_(here), device) / 1e9, "GB/s")
    report("copy to the device", size / seconds(lambda: here.copy_(pinned, non_blocking=True), device) / 1e9, "GB/s")
    report("copy from the device", size / seconds(lambda: pinned.copy_(here, non_blocking=True), device) / 1e9, "GB/s")
    n = 256 if context.quick else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    report("matrix product in bfloat16", 2 * n**3 / seconds(lambda: torch.mm(a, b), device) / 1e12, "TFLOP/s")


def seconds(work: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """The mean time of a piece of work on the device, after one that does not count."""
    work()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()[0]


def _commit() -> str:
    """The commit of the checkout; empty outside a repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        return ""
