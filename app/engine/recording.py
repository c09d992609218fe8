"""Finds and records the maps of a torch network: the tensor whose mean over the positions is the features.

The tensor is found by its values, so it does not matter how a network writes its pooling.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from app.models.split import FeaturesAndLogits

_LAST = 32  # tensors of four dimensions that are compared with the features
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # of the largest feature


class Place(NamedTuple):
    """Where the maps are: the number of the operation, and whether its output has the channels last."""

    operation: int
    channels_last: bool


class _Outputs(TorchDispatchMode):
    """Calls ``see`` with the number and the output of each operation within the block."""

    def __init__(self, see: Callable[[int, Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see
        self._count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **kwargs or {})
        self._see(self._count, output)
        self._count += 1
        return output


@torch.inference_mode()
def find(network: FeaturesAndLogits, images: Tensor) -> Place | None:
    """The place of the maps in a network, found with random ``images`` [n, 3, crop, crop].

    None if no tensor of more than one position has the features as its mean, or if the logits are not linear in them.
    """
    if not isinstance(network.head, torch.nn.Linear):
        return None
    last: deque[tuple[int, Tensor]] = deque(maxlen=_LAST)

    def see(number: int, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            last.append((number, output))

    with _Outputs(see):
        features, _ = network(images)
    if features.dim() != 2 or not features.any():
        return None
    tolerance = _TOLERANCE.get(images.dtype, 2e-2) * float(features.abs().max())
    for number, output in reversed(last):
        for channels_last, axes in ((False, (2, 3)), (True, (1, 2))):
            if _is_mean(output, axes, features, tolerance):
                return Place(number, channels_last)
    return None


def _is_mean(output: Tensor, axes: tuple[int, int], features: Tensor, tolerance: float) -> bool:
    if output.shape[axes[0]] * output.shape[axes[1]] == 1:
        return False
    mean = output.float().mean(axes)
    return mean.shape == features.shape and bool(((mean - features).abs() <= tolerance).all())


class Recording:
    """A network that keeps the ``maps`` of its last batch: [n, dim, rows, columns]. For one thread."""

    def __init__(self, network: FeaturesAndLogits, place: Place) -> None:
        self._network = network
        self._place = place
        self.maps = torch.empty(0)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with _Outputs(self._see):
            features, logits = self._network(images)
        return features, logits

    def activation(self, place: int, class_id: int) -> Tensor:
        """The class activation map of one image of the batch, float32 [rows, columns], on the device."""
        weights = cast(torch.nn.Linear, self._network.head).weight[class_id]
        return torch.einsum("d,dhw->hw", weights.float(), self.maps[place].float())

    def _see(self, number: int, output: Any) -> None:
        if number == self._place.operation:
            self.maps = output.permute(0, 3, 1, 2) if self._place.channels_last else output
