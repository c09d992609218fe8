"""JPEG decoding for a device: the kernels of the resize, compiled for this CPU, against Pillow; and bad files."""

import functools
import io
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from app import images
from app.engine.base import Jpeg
from app.engine.jpeg import JpegDecoder
from app.images import Preprocessing
from app.images.geometry import UPRIGHT, resized_size
from tests.conftest import PHOTOGRAPHS
from tests.engine.kernels import COMPILER, cpu_kernels

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")

MEAN = STD = (0.5, 0.5, 0.5)
PRESET = Preprocessing(256, 224, "bilinear", MEAN, STD)
PRESETS = [
    PRESET,
    Preprocessing(232, 224, "bicubic", MEAN, STD),
    Preprocessing(96, 96, "bicubic", MEAN, STD, squash=True),
]
FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(500, 375), (375, 500), (224, 224), (100, 61), (1, 1), (2, 3), (7, 900), (900, 7), (1999, 1333), (333, 1000)]
Crops = npt.NDArray[np.uint8]


def decoded(image: Image.Image) -> torch.Tensor:
    """A decoded image as it lies in the memory of the device."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def crops(pictures: Sequence[Image.Image], preset: Preprocessing, orientation: int = 1) -> Crops:
    """The crops of decoded images, by the kernels."""
    decoder = JpegDecoder(preset, torch.device("cpu"), lambda _: list(map(decoded, pictures)), cpu_kernels())
    out = torch.zeros((len(pictures), preset.crop, preset.crop, 3), dtype=torch.uint8)
    files = [Jpeg(b"a file", *picture.size, orientation) for picture in pictures]
    assert decoder.decode(files, range(len(files)), out) == []
    return out.numpy()


def reference(image: Image.Image, preset: Preprocessing) -> Crops:
    """Pillow's resize, first the rows and then the columns, as all but the tallest images are resized at once."""
    width, height, left, top = resized_size(*image.size, preset)
    resample = FILTER[preset.interpolation]
    resized = image.resize((width, image.height), resample).resize((width, height), resample)
    return np.asarray(resized.crop((left, top, left + preset.crop, top + preset.crop)))


@functools.cache
def noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.resize}-{preset.crop}-{preset.interpolation}")
def test_the_kernels_compute_pillows_crop_to_the_last_bit(preset: Preprocessing) -> None:
    found = crops([noise(size) for size in SIZES], preset)
    for size, crop in zip(SIZES, found, strict=True):
        assert np.array_equal(crop, reference(noise(size), preset)), size


@pytest.mark.parametrize("orientation", range(9))
def test_the_kernels_turn_the_image_upright(orientation: int) -> None:
    picture = noise((301, 402))
    upright = picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture
    assert np.array_equal(crops([picture], PRESET, orientation)[0], reference(upright, PRESET))


@pytest.mark.shared
@pytest.mark.parametrize("preset", PRESETS[:2], ids=str)
def test_crops_of_photographs_are_those_of_the_reference(preset: Preprocessing) -> None:
    for path in PHOTOGRAPHS:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
        expected = images.decode(images.read_header(data, picture.width * picture.height), preset, fast=False)
        difference = np.abs(crops([picture], preset)[0].astype(np.int16) - expected)
        assert difference.max() == 0, path.name
