"""Images as fine-tuning sees them. Runs in the data loader's workers, or on the training thread.

Images are decoded as they are for a request. The random crop of an image depends only on the seed, the epoch and its
position, not on the number of workers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from app import images
from app.commands.train.examples import Example
from app.images import Preprocessing

_SCALE = (
    0.25,
    1.0,
)  # of the area; the 0.08 used to train ImageNet shows too little of each image in a small training set

Item = tuple[Tensor, int]
"""A normalised float32 image [3, crop, crop] and its class."""


class Crops(Dataset[Item]):
    """The crop of each example that is served; with ``seed``, a random crop, possibly mirrored, for each ``epoch``."""

    def __init__(
        self,
        examples: Sequence[Example],
        preprocessing: Preprocessing,
        max_pixels: int,
        fast: bool,
        seed: int | None = None,
    ) -> None:
        self.epoch = 0
        self._examples = examples
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        self._fast = fast
        self._seed = seed
        self._augment = v2.Compose(
            [
                v2.RandomResizedCrop(
                    preprocessing.crop, _SCALE, interpolation=InterpolationMode(preprocessing.interpolation)
                ),
                v2.RandomHorizontalFlip(),
            ]
        )
        self._normalise = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocessing.mean, preprocessing.std)]
        )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, position: int) -> Item:
        example = self._examples[position]
        header = images.read_header(example.path.read_bytes(), self._max_pixels)
        if self._seed is None:
            pixels = _tensor(images.decode(header, self._preprocessing, self._fast))
        else:
            pixels = self._random(_tensor(images.decode_whole(header, self._preprocessing)), position)
        return self._normalise(pixels), example.class_id

    def _random(self, pixels: Tensor, position: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self._seed, self.epoch, position)))
            augmented: Tensor = self._augment(pixels)
        return augmented


def _tensor(crop: images.Crop) -> Tensor:
    """uint8 [3, height, width]."""
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)
