"""Part 1: the network alone, eager, folded and fused, at every batch size, with and without cuDNN's benchmark."""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.models.fuse import CUDNN, Operations, fold, fuse
from app.models.split import FeaturesAndLogits, split
from tests.gpu import material
from tests.gpu.figures import Context, Report
from tests.gpu.machine import seconds, synchronize

_BATCHES = (256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2, 1)
_QUICK_BATCHES = (1,)
_LARGE = 128
_LEAST_S, _MOST = 0.3, 100  # of a measurement, and its repeats


def variants(context: Context, report: Report) -> None:
    """Measure the eager network with plain calls, the others as CUDA graphs. Fused and large comes first."""
    device, quick = torch.device(context.device), context.quick
    dtype, batches = (torch.float32, _QUICK_BATCHES) if quick else (torch.bfloat16, _BATCHES)
    eager = split(material.find(context).model().build()).eval().requires_grad_(False)
    folded = fold(eager)
    networks = {"fused": fuse(folded, _operations(device)), "folded": folded, "eager": eager}
    networks = {name: _on(device, dtype, network) for name, network in networks.items()}
    for benchmark in (False, True) if context.cuda else (False,):
        torch.backends.cudnn.benchmark = benchmark
        for name, network in networks.items():
            label = f"{name}, cudnn.benchmark {benchmark}"
            rates, capture_s = _sweep(name, network, batches, device, dtype, label, report)
            large = [rate for batch, rate in rates.items() if batch >= _LARGE or quick]
            report(label, max(large), "img/s", target=">= 15000" if name == "fused" else "")
            if name != "eager":
                report(f"{label}: capture", capture_s, "s", detail=True)
    if context.cuda:
        report("memory of all graphs", torch.cuda.memory_reserved(device) / 2**30, "GiB")


def network_of(context: Context, dtype: torch.dtype) -> nn.Module:
    """The fused network on the device."""
    device = torch.device(context.device)
    eager = split(material.find(context).model().build()).eval().requires_grad_(False)
    return _on(device, dtype, fuse(fold(eager), _operations(device)))


@torch.inference_mode()
def _sweep(
    name: str,
    network: nn.Module,
    batches: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    label: str,
    report: Report,
) -> tuple[dict[int, float], float]:
    """Images per second at each batch size, and the seconds of all captures."""
    rates, capture_s = {}, 0.0
    for batch in batches:
        images = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        started = time.perf_counter()
        run = captured(network, images) if name != "eager" else lambda images=images: network(images)
        capture_s += time.perf_counter() - started
        once = seconds(run, device, 1)
        taken = seconds(run, device, max(1, min(_MOST, round(_LEAST_S / once)))) if device.type == "cuda" else once
        rates[batch] = batch / taken
        report(f"{label}, batch {batch}", rates[batch], "img/s", detail=True)
    return rates, capture_s


def captured(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """A pass as a CUDA graph. On a CPU, a plain call."""
    if images.device.type != "cuda":
        return lambda: network(images)
    stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(images)
    synchronize(images.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        network(images)
    return graph.replay


def _on(device: torch.device, dtype: torch.dtype, network: FeaturesAndLogits) -> FeaturesAndLogits:
    """A copy on the device, whose backbone computes in ``dtype``."""
    moved = copy.deepcopy(network).to(device).to(memory_format=torch.channels_last)
    moved.backbone.to(dtype)
    return moved


def _operations(device: torch.device) -> Operations:
    """cuDNN's fused convolutions; on a CPU, the same in single steps."""
    if device.type == "cuda":
        return CUDNN

    def relu(images: Tensor, weight: Tensor, bias: Tensor, *geometry: object) -> Tensor:
        return functional.conv2d(images, weight, bias, *geometry).relu()

    def add_relu(
        images: Tensor, weight: Tensor, added: Tensor, alpha: float, bias: Tensor, *geometry: object
    ) -> Tensor:
        return functional.conv2d(images, weight, bias, *geometry).add(added, alpha=alpha).relu()

    return Operations(relu, add_relu)
