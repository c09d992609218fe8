"""Post-training quantisation to int8 by NNCF, calibrated and judged with the user's photographs.

The judgement is cross-fitted: the network is calibrated on each half of the photographs and judged on the other half.
The exported network is calibrated on all of them. Its speed is that of the judged ones, which are as large. This needs
the extra ``int8``; serving does not.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import ModelError, TopkError
from app.imagenet.labels import Label, normalized
from app.images import Preprocessing
from app.images.decoder import Decoder
from app.images.files import Skipped, find_images
from app.images.sandbox import Sandbox
from app.models.openvino import auto_precision, ov

Pixels = npt.NDArray[np.float32]
Step = Callable[[str], None]

MAX_PHOTOGRAPHS, MIN_PHOTOGRAPHS = 300, 20
MIN_AGREEMENT = 0.97
MAX_POINTS_LOST = 0.02
_TIMED_S, _MIN_ROUNDS = 3.0, 3
_TYPES = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}


@dataclass(frozen=True, slots=True)
class Photographs:
    """Crops, float32 [n, crop, crop, 3] in 0..255: decoded as in serving, and as by the reference.

    ``classes`` are the true class ids if every photograph is in a folder named by wnid or label, else None.
    ``skipped`` is what was left out of the folder.
    """

    served: Pixels
    reference: Pixels
    classes: npt.NDArray[np.int64] | None
    unreadable: int
    skipped: Skipped


@dataclass(frozen=True, slots=True)
class Judgement:
    """Int8 compared with float32 on unseen photographs, as fractions.

    ``top1`` and ``top5`` are the accuracies of (int8, float32), or None if the true classes are unknown. ``speedup`` is
    the throughput of int8 on this machine as a multiple of the one in ``precision``, which ``auto`` selects here.
    ``skipped`` is what was left out of the folder.
    """

    images: int
    agreement: float
    top1: tuple[float, float] | None
    top5: tuple[float, float] | None
    speedup: float
    precision: str
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def holds(self) -> bool:
        """The accuracy rule: at least 97 % of the predictions agree, and accuracy drops by at most 2 points."""
        pairs = [pair for pair in (self.top1, self.top5) if pair]
        return self.agreement >= MIN_AGREEMENT and all(ours >= ref - MAX_POINTS_LOST - 1e-9 for ours, ref in pairs)

    def __str__(self) -> str:
        parts = [f"same prediction as float32 for {self.agreement:.1%} of {self.images} photographs"]
        for name, pair in (("top-1", self.top1), ("top-5", self.top5)):
            if pair:
                parts.append(f"{name} {pair[0]:.1%} instead of {pair[1]:.1%}")
        parts.append(f"{self.speedup:.1f} times as fast as {self.precision} on this machine")
        return ", ".join(parts)


def read(
    folder: Path, preprocessing: Preprocessing, labels: Sequence[Label], max_pixels: int, step: Step
) -> Photographs:
    """Decode up to ``MAX_PHOTOGRAPHS``, spread evenly over the folder. Raises ModelError if there are too few."""
    try:
        found, skipped = find_images(folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from error
    paths = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, MAX_PHOTOGRAPHS).astype(int))] if found else []
    served, reference, names = [], [], []
    ids = {label.wnid or normalized(label.label): i for i, label in enumerate(labels)}
    step("reading the photographs")
    with Sandbox() as sandbox:
        decoders = [Decoder(preprocessing, max_pixels, None, fast, sandbox) for fast in (True, False)]
        for path in paths:
            try:
                content = path.read_bytes()
                crops = [decoder.decode_now(content) for decoder in decoders]
            except (TopkError, OSError):
                continue
            served.append(crops[0])
            reference.append(crops[1])
            names.append(_class_name(path.relative_to(folder.parent), ids))
    if len(served) < MIN_PHOTOGRAPHS:
        raise ModelError(
            f"{len(served)} photographs can be read in {folder}; calibration needs at least {MIN_PHOTOGRAPHS}"
        )
    classes = np.array([ids[name] for name in names if name]) if all(names) else None
    return Photographs(
        np.stack(served).astype(np.float32),
        np.stack(reference).astype(np.float32),
        classes,
        unreadable=len(paths) - len(served),
        skipped=skipped,
    )


def _class_name(file: Path, ids: dict[str, int]) -> str | None:
    """The name of the innermost folder that is a class: links may lead to folders with other names."""
    return next((name for name in map(normalized, reversed(file.parent.parts)) if name in ids), None)


def quantize(network: ov.Model, pixels: Pixels) -> ov.Model:
    """A copy of ``network`` in int8, calibrated on ``pixels``. Raises ModelError."""
    try:
        import nncf
    except ImportError as error:
        raise ModelError("int8 needs NNCF: pip install '.[int8]'") from error
    nncf.set_log_level(logging.ERROR)
    # Predictions that stay the same, measured with resnet50 on 200 photographs, cross-fitted: 97.5 % with this preset,
    # 96.5 % with `mixed`, 95.5 % with the first and last layers in float32.
    quantized: ov.Model = nncf.quantize(
        network.clone(), nncf.Dataset([pixels[i : i + 1] for i in range(len(pixels))]), subset_size=len(pixels)
    )
    return quantized


def judge(network: ov.Model, photographs: Photographs, step: Step) -> Judgement:
    """Judge each photograph with the network that was calibrated on the other half."""
    count = len(photographs.served)
    halves = [np.arange(0, count, 2), np.arange(1, count, 2)]
    step("running the float32 model")
    expected = _logits(network, photographs.reference)
    found = np.empty_like(expected)
    for seen, unseen in (halves, halves[::-1]):
        step("calibrating int8 on one half, judging it on the other")
        quantized = quantize(network, photographs.served[seen])
        found[unseen] = _logits(quantized, photographs.served[unseen])
    precision, truth = auto_precision(), photographs.classes
    step(f"timing {precision} and int8")
    return Judgement(
        count,
        float((found.argmax(1) == expected.argmax(1)).mean()),
        top1=None if truth is None else (_accuracy(found, truth, 1), _accuracy(expected, truth, 1)),
        top5=None if truth is None else (_accuracy(found, truth, 5), _accuracy(expected, truth, 5)),
        speedup=speedup(network, quantized, precision, photographs.served),
        precision=precision,
        skipped=photographs.skipped,
    )


def speedup(network: ov.Model, quantized: ov.Model, precision: str, pixels: Pixels) -> float:
    """The throughput of ``quantized`` as a multiple of that of ``network`` in ``precision``. Takes about three seconds.

    The two take turns, so that changes of the machine's speed affect both. A round has one image for each stream.
    """
    before, after = _queue(network, _TYPES[precision]), _queue(quantized, ov.Type.f32)
    seconds: list[tuple[float, float]] = []
    _round_s(before, pixels), _round_s(after, pixels)  # the first round allocates
    while len(seconds) < _MIN_ROUNDS or np.sum(seconds) < _TIMED_S:
        seconds.append((_round_s(before, pixels), _round_s(after, pixels)))
    medians = np.median(seconds, axis=0)
    return float(medians[0] / medians[1] * len(after) / len(before))


def _queue(network: ov.Model, precision: ov.Type) -> ov.AsyncInferQueue:
    """The network with as many streams as give the highest throughput."""
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    return ov.AsyncInferQueue(ov.Core().compile_model(network, "CPU", hints))


def _round_s(queue: ov.AsyncInferQueue, pixels: Pixels) -> float:
    """The seconds of one image for each stream."""
    started = time.perf_counter()
    for place in range(len(queue)):
        queue.start_async([pixels[place % len(pixels)][np.newaxis]])
    queue.wait_all()
    return time.perf_counter() - started


def _logits(network: ov.Model, pixels: Pixels) -> Pixels:
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    logits: Pixels = np.concatenate([compiled([pixels[i : i + 8]])["logits"] for i in range(0, len(pixels), 8)])
    return logits


def _accuracy(logits: Pixels, classes: npt.NDArray[Any], k: int) -> float:
    best = np.argsort(-logits, axis=1)[:, :k]
    return float((best == classes[:, None]).any(axis=1).mean())
