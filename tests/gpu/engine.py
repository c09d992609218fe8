"""Part 1: the engine's outputs and speed."""

import time
from collections.abc import Sequence

import numpy as np

from app.engine.base import Pixels, Want
from app.engine.torch import TorchEngine
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from tests.gpu import material
from tests.gpu.figures import Context, Report
from tests.gpu.material import Logits, Material

_BATCH = 16
_MAX_PIXELS = 2**27


def float32(context: Context, report: Report) -> None:
    """Compare float32 logits with the references."""
    _compare(context, report, "float32", "< 1e-3")


def bfloat16(context: Context, report: Report) -> None:
    """Compare bfloat16 logits with the references. Start-up and memory are those of a service."""
    _compare(context, report, "bfloat16", "< 1e-2")


def _compare(context: Context, report: Report, precision: str, bound: str) -> None:
    found = material.find(context)
    started = time.monotonic()
    engine = TorchEngine(found.model(), context.device, precision)
    engine.load()
    report("start of the engine", time.monotonic() - started, "s", "< 15")
    for kind, size in engine.memory().items():
        report(f"memory {kind}", size / 2**30, "GiB", detail=True)
    logits = forward(engine, crops(found))
    errors = np.linalg.norm(logits - found.logits, axis=1) / np.linalg.norm(found.logits, axis=1)
    report("relative error, worst photograph", float(errors.max()), expected=bound)
    same = (logits.argmax(1) == found.logits.argmax(1)).mean()
    report("same top-1", 100 * float(same), "%", ">= 99")


def crops(found: Material) -> list[Pixels]:
    """The photographs, decoded and resized exactly as torchvision's preset does."""
    decoder = Decoder(found.model().preprocessing, _MAX_PIXELS, None, False, Sandbox())
    return [decoder.decode_now(file) for file in found.files]


def forward(engine: TorchEngine, images: Sequence[Pixels]) -> Logits:
    """The logits of images, in batches."""
    rows: list[Logits] = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        outputs = engine.forward(batch, [Want(k=5, logits=True)] * len(batch))
        rows += [outputs.logits[place] for place in range(len(batch))]
    return np.stack(rows)
