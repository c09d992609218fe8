"""Float32 to int8 with the user's own photographs, judged on photographs that the calibration has not seen.

NNCF's post-training quantisation. The judgement is cross-fitted: calibrated on one half, judged on the other, both
ways; what is written is calibrated on all. It needs the extra ``int8``; nothing of it is needed to serve.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import ModelError, TopkError
from app.imagenet.labels import Label
from app.images import Preprocessing
from app.images.decoder import Decoder
from app.images.files import find_images
from app.images.sandbox import Sandbox
from app.models.openvino import ov

Pixels = npt.NDArray[np.float32]
Step = Callable[[str], None]

MOST, LEAST = 300, 20  # photographs
MIN_AGREEMENT = 0.97
MAX_POINTS_LOST = 0.02


@dataclass(frozen=True, slots=True)
class Photographs:
    """Crops in grey levels, float32 [n, crop, crop, 3]: as served, and as the reference decodes them.

    ``classes`` are the true class ids where every photograph lies in a folder named by wnid or label, else None.
    """

    served: Pixels
    reference: Pixels
    classes: npt.NDArray[np.int64] | None
    unreadable: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Int8 beside float32 on unseen photographs; fractions. ``accuracy`` is (int8, float32), None without truth."""

    images: int
    agreement: float
    top1: tuple[float, float] | None
    top5: tuple[float, float] | None

    @property
    def holds(self) -> bool:
        """The accuracy rule: 97 % of the answers the same, and no more than 2 points of accuracy lost."""
        pairs = [pair for pair in (self.top1, self.top5) if pair]
        return self.agreement >= MIN_AGREEMENT and all(ours >= ref - MAX_POINTS_LOST - 1e-9 for ours, ref in pairs)

    def __str__(self) -> str:
        parts = [f"same answer as float32 for {self.agreement:.1%} of {self.images} photographs"]
        for name, pair in (("top-1", self.top1), ("top-5", self.top5)):
            if pair:
                parts.append(f"{name} {pair[0]:.1%} against {pair[1]:.1%}")
        return ", ".join(parts)


def read(
    folder: Path, preprocessing: Preprocessing, labels: Sequence[Label], max_pixels: int, step: Step
) -> Photographs:
    """Decode up to ``MOST`` photographs, spread evenly over the folder's. Raises ModelError where there are too few."""
    try:
        found = find_images(folder).paths
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from error
    paths = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, MOST).astype(int))] if found else []
    served, reference, names = [], [], []
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
            names.append(path.parent.name)
    if len(served) < LEAST:
        raise ModelError(f"{len(served)} photographs can be read in {folder}; calibration needs {LEAST} or more")
    ids = {label.wnid or label.label: i for i, label in enumerate(labels)}
    classes = np.array([ids[name] for name in names]) if all(name in ids for name in names) else None
    return Photographs(
        np.stack(served).astype(np.float32),
        np.stack(reference).astype(np.float32),
        classes,
        unreadable=len(paths) - len(served),
    )


def quantize(network: ov.Model, pixels: Pixels) -> ov.Model:
    """``network`` in int8, calibrated on ``pixels``; ``network`` itself is left alone. Raises ModelError."""
    try:
        import nncf
    except ImportError as error:
        raise ModelError("int8 needs NNCF: pip install 'topk[int8]'") from error
    nncf.set_log_level(logging.ERROR)
    # Measured on 200 photographs, cross-fitted, resnet50: this preset keeps 97.5 % of the answers, `mixed` 96.5 %, and
    # without its first and last layers 95.5 %.
    quantized: ov.Model = nncf.quantize(
        network.clone(), nncf.Dataset([pixels[i : i + 1] for i in range(len(pixels))]), subset_size=len(pixels)
    )
    return quantized


def judge(network: ov.Model, photographs: Photographs, step: Step) -> Judgement:
    """Cross-fitted: each photograph is judged by the network calibrated on the other half."""
    count = len(photographs.served)
    halves = [np.arange(0, count, 2), np.arange(1, count, 2)]
    step("float32")
    expected = _logits(network, photographs.reference)
    found = np.empty_like(expected)
    for seen, unseen in (halves, halves[::-1]):
        step("calibrating on one half, judging on the other")
        found[unseen] = _logits(quantize(network, photographs.served[seen]), photographs.served[unseen])
    truth = photographs.classes
    return Judgement(
        count,
        float((found.argmax(1) == expected.argmax(1)).mean()),
        top1=None if truth is None else (_accuracy(found, truth, 1), _accuracy(expected, truth, 1)),
        top5=None if truth is None else (_accuracy(found, truth, 5), _accuracy(expected, truth, 5)),
    )


def _logits(network: ov.Model, pixels: Pixels) -> Pixels:
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    logits: Pixels = np.concatenate([compiled([pixels[i : i + 8]])["logits"] for i in range(0, len(pixels), 8)])
    return logits


def _accuracy(logits: Pixels, classes: npt.NDArray[Any], k: int) -> float:
    best = np.argsort(-logits, axis=1)[:, :k]
    return float((best == classes[:, None]).any(axis=1).mean())
