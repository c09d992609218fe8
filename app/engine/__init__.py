"""Runs batches on a device. This module is the seam: numpy in, numpy out, and no torch until an engine is loaded."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from app import machine, models
from app.errors import ModelError
from app.models.model import Model

log = structlog.get_logger(__name__)

_START = {"openvino": "2 to 5 s", "torch": "3 to 20 s"}  # until the model is warm
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate|bad.?alloc", re.IGNORECASE
)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Want:
    """What one item asks of the forward pass: its k best classes, and whole rows only where they are needed.

    Of fewer than k classes all are given.
    """

    k: int = 0
    features: bool = False
    logits: bool = False
    probabilities: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One item's share of a batch. ``class_ids`` (int64) and ``scores`` (float32 softmax), [k], highest first.

    ``features`` [dim] is the input of the last classifying layer; ``logits`` and ``probabilities`` are [classes];
    all float32, None where the item did not want them.
    """

    class_ids: npt.NDArray[np.int64]
    scores: Floats
    features: Floats | None = None
    logits: Floats | None = None
    probabilities: Floats | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is told of a loaded engine where it is not: in a process that hands it work."""

    name: str
    device: str
    precision: str
    streams: int
    spreads: bool
    compilation: str  # when it was loaded
    buckets: tuple[int, ...]
    dim: int


class Engine(Protocol):
    """What the classifier needs of an engine. ``load`` once, then ``forward`` from the threads of its streams."""

    name: str
    device: str
    precision: str
    streams: int
    spreads: bool  # whether a lone image can have all cores to itself
    compilation: str  # "eager", "compiling" in the background, or "compiled"
    buckets: tuple[int, ...]

    @property
    def dim(self) -> int:
        """Length of a features row."""

    def memory(self) -> dict[str, int]:
        """Bytes of the device's own memory, ``held`` by this process and in ``total``; empty where it has none."""

    def load(self) -> None:
        """Bring the model onto the device. Blocks. Raises ModelError, also where the labels are not its network's."""

    def forward(self, images: Sequence[npt.NDArray[Any]], wants: Sequence[Want], alone: bool = False) -> list[Row]:
        """Classify one batch; where it is ``alone`` on the device, an engine that spreads uses all cores for it.

        An image is a uint8 RGB crop of shape [crop, crop, 3], normalised on the device, or an already preprocessed
        float32 tensor of shape [3, crop, crop]. Returns a row an image, in order. Raises MemoryError where the device
        has no memory for a batch of this size.
        """


@contextmanager
def memory_errors() -> Iterator[None]:
    """A framework's complaint that there is no memory, as MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise


def check_outputs(model: Model, classes: int, dim: int) -> None:
    """Raise ModelError unless a network of so many classes and features can have the labels of ``model``."""
    labels = len(model.labels)
    if labels != classes:
        raise ModelError(
            f"{model.name} has {labels} labels for a network of {classes} classes; the weights and the labels must"
            " belong to the same model"
        )
    if dim < 1:
        raise ModelError(f"the network of {model.name} has no features")


def choose(engine: str, device: str) -> str:
    """``openvino`` or ``torch`` for the settings ``engine`` and ``device``. Raises ModelError.

    Torch is imported only where there may be an accelerator for it.
    """
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise ModelError(f"the engine openvino serves CPUs; for {device} choose torch")
    if engine != "auto":
        return engine
    if device == "auto":
        return "torch" if _accelerator() else "openvino"
    return "openvino" if device == "cpu" else "torch"


def _accelerator() -> bool:
    if not machine.may_have_accelerator() or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def create(model: Model, engine: str, device: str, precision: str) -> Engine:
    """The engine that ``choose`` names, for the settings ``device`` and ``precision``. Raises ModelError."""
    log.info("starting the engine and measuring its speed", engine=engine, usually=_START[engine])
    if engine == "openvino":
        from app.engine.openvino import OpenVinoEngine

        return OpenVinoEngine(model, precision)
    models.require_torch("the engine torch")
    from app.engine.torch import TorchEngine

    return TorchEngine(model, device, precision)
