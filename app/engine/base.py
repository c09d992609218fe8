"""The interface of an engine: numpy in, numpy out. Nothing here imports torch or OpenVINO."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from app.errors import DeviceLost, ModelError
from app.models.model import Model

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate|bad.?alloc|alloc(ation)?_failed",
    re.IGNORECASE,
)
# As torch words the errors of the runtime, the driver and the libraries (ATen/cuda/Exceptions.h). A call that a library
# does not support leaves the device usable.
_LOST = re.compile(r"\b(CUDA|CUDA driver|cuDNN) error: (?!\w+_STATUS_(NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE))")

Floats = npt.NDArray[np.float32]
BEST = -1
"""In place of a class id: the best class of the image."""

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""A uint8 RGB crop of shape [crop, crop, 3], or a preprocessed float32 tensor of shape [3, crop, crop]."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG file for a device that decodes: without metadata, and with the EXIF orientation, which is 0 or 1 to 8.

    ``width`` and ``height`` are the stored size in pixels.
    """

    data: bytes | memoryview
    width: int
    height: int
    orientation: int


@dataclass(frozen=True, slots=True)
class Want:
    """The outputs that one image needs: its k best classes (all of a model with fewer), and whole rows if required.

    ``explain`` is the class whose map is wanted, ``BEST`` for the best one, None for no map. Only an engine that
    ``explaining`` has created computes maps.
    """

    k: int = 1
    features: bool = False
    logits: bool = False
    probabilities: bool = False
    explain: int | None = None


class Row(NamedTuple):
    """The outputs for one image of a batch. ``class_ids`` (int64) and ``scores`` (float32 softmax), [k], highest first.

    ``features`` [dim] is the input of the last classification layer; ``logits`` and ``probabilities`` are [classes];
    all float32, None if the image does not need them. ``energy`` is the log-sum-exp of the logits minus their mean,
    before any temperature. ``activation`` [rows, columns], float32, is the class activation map, if it is wanted.
    """

    class_ids: npt.NDArray[np.int64]
    scores: Floats
    features: Floats | None = None
    logits: Floats | None = None
    probabilities: Floats | None = None
    energy: float = math.nan
    activation: Floats | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The outputs for a batch of n images, as arrays.

    ``class_ids`` (int64) and ``scores`` (float32 softmax) are [n, k], highest first, for the largest k of the batch.
    ``finite`` (bool) is [n]: whether all features and logits of an image are finite. ``energies`` (float32) are [n]:
    the log-sum-exp of the logits minus their mean. Keyed by the place of each image that needs them, and float32, are
    ``features`` [dim], ``logits`` and ``probabilities`` [classes], and the class activation maps ``activations`` [rows,
    columns]. ``undecodable`` has the places of JPEGs that the device could not decode; the other outputs for these are
    meaningless.
    """

    class_ids: npt.NDArray[np.int64]
    scores: Floats
    finite: npt.NDArray[np.bool_]
    energies: Floats
    features: Mapping[int, Floats] = field(default_factory=dict)
    logits: Mapping[int, Floats] = field(default_factory=dict)
    probabilities: Mapping[int, Floats] = field(default_factory=dict)
    activations: Mapping[int, Floats] = field(default_factory=dict)
    undecodable: Collection[int] = ()

    def __len__(self) -> int:
        return len(self.class_ids)

    def row(self, place: int, k: int) -> Row:
        """The outputs for one image, with its ``k`` best classes. The arrays are views."""
        return Row(
            self.class_ids[place, :k],
            self.scores[place, :k],
            self.features.get(place),
            self.logits.get(place),
            self.probabilities.get(place),
            float(self.energies[place]),
            self.activations.get(place),
        )


class Facts(Protocol):
    """Properties of a loaded engine, in the process that has it or in another one."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def device_name(self) -> str:
        """The product name of the GPU or the processor."""

    @property
    def precision(self) -> str: ...
    @property
    def streams(self) -> int:
        """Batches that run at the same time."""

    @property
    def spreads(self) -> bool:
        """Whether a single image can use all cores."""

    @property
    def compilation(self) -> str:
        """``eager`` (calls of torch), ``captured`` (CUDA graphs) or ``compiled`` (by OpenVINO)."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes, ascending."""

    @property
    def decodes_jpegs(self) -> bool:
        """Whether it takes a ``Jpeg`` in place of a crop."""

    @property
    def dim(self) -> int:
        """Length of a row of features."""

    @property
    def inexplicable(self) -> str | None:
        """Why there are no class activation maps of this network; None if there are."""


class Engine(Facts, Protocol):
    """A device with a model. Call ``load`` once, then ``forward`` from the threads of its streams."""

    @property
    def pads(self) -> bool:
        """Whether it pads a batch to the next bucket, because the first pass of each shape is slow."""

    def memory(self) -> dict[str, int]:
        """Bytes of the device's own memory: ``held`` by this process and ``total``; empty if it has none."""

    def load(self) -> None:
        """Bring the model onto the device. Blocks.

        Raises ModelError, also if the labels do not fit the network; MemoryError if the model does not fit in the
        memory of the device; and DeviceLost if it has failed.
        """

    def explaining(self) -> "Engine":
        """An engine of one stream, not loaded yet, that also computes class activation maps of the same network.

        Its ``forward`` takes no ``Jpeg``.
        """

    def forward(self, images: Sequence[Jpeg | Pixels], wants: Sequence[Want], alone: bool = False) -> Rows:
        """Classify one batch. If it is ``alone`` on the device, an engine that spreads uses all cores for it.

        Each image is a uint8 RGB crop of shape [crop, crop, 3], which is normalised on the device, or a preprocessed
        float32 tensor of shape [3, crop, crop], or a ``Jpeg`` if the engine decodes it. Returns the outputs in the
        order of the images. The caller owns them. Raises MemoryError if the device has no memory for a batch of this
        size, and DeviceLost if it has failed.
        """


@contextmanager
def device_errors() -> Iterator[None]:
    """Convert a framework's errors of the device: MemoryError if it is out of memory, otherwise DeviceLost.

    After any other CUDA error, all further calls of the process fail. Errors that are not of the device pass.
    """
    try:
        yield
    except RuntimeError as error:  # torch.AcceleratorError is one; cuBLAS and cuDNN raise plain ones
        if _NO_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        if _LOST.search(str(error)):
            raise DeviceLost("the device has failed, and only a new process can use it again") from error
        raise


def explained_classes(wants: Sequence[Want], class_ids: npt.NDArray[np.int64]) -> dict[int, int]:
    """The class whose map each image needs, by the place of the image in its batch.

    ``class_ids`` [n, k] are the best classes of each image, highest first. The first one replaces ``BEST``.
    """
    wanted = {place: want.explain for place, want in enumerate(wants) if want.explain is not None}
    return {place: int(class_ids[place, 0]) if one == BEST else one for place, one in wanted.items()}


def no_maps(model: Model) -> str:
    """The reason why a network is inexplicable."""
    return (
        f"the network of {model.name} does not end in global pooling and one linear layer, so it has no class"
        " activation maps"
    )


def check_outputs(model: Model, classes: int, dim: int) -> None:
    """Raise ModelError if a network of so many classes and features does not fit the labels of ``model``."""
    labels = len(model.labels)
    if labels != classes:
        raise ModelError(
            f"{model.name} has {labels} labels for a network of {classes} classes; the weights and the labels must"
            " belong to the same model"
        )
    if dim < 1:
        raise ModelError(f"the network of {model.name} has no features")
