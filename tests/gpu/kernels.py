"""Part 4: the kernels that take the most time."""

import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu import variants
from tests.gpu.figures import Context, Report

_BATCH, _PASSES, _TOP = 128, 20, 10


@torch.inference_mode()
def kernels(context: Context, report: Report) -> None:
    """Profile the fused network, and report the share of each of the ten slowest kernels."""
    device = torch.device(context.device)
    network = variants.network_of(context, torch.bfloat16)
    images = torch.randn(_BATCH, 3, 224, 224, device=device, dtype=torch.bfloat16)
    run = variants.captured(network, images.contiguous(memory_format=torch.channels_last))
    run()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(_PASSES):
            run()
        torch.cuda.synchronize(device)
    found = sorted(profiled.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)
    total = sum(event.self_device_time_total for event in found)
    report("kernels of a pass", total / _PASSES / 1000, "ms")
    for event in found[:_TOP]:
        report(event.key[:60], 100 * event.self_device_time_total / total, "%")
