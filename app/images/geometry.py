"""Computes the box of an image that becomes the crop, as in torchvision's classification preset.

The preset resizes the shorter edge and crops the centre (``torchvision.transforms._presets``).
"""

import math
from dataclasses import dataclass
from typing import Literal

from PIL import Image

# EXIF orientation -> the Pillow transpose that turns the stored image upright (inverse of EXIF 2.3, 4.6.4)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_AXES = {UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The preprocessing of a model: resize the shorter edge to ``resize``, crop to ``crop`` x ``crop``, normalise.

    ``mean`` and ``std`` apply to values in 0..1. ``resize`` is at least ``crop``, as in every torchvision preset. With
    ``squash`` both edges are resized to ``resize``; some timm models are trained this way.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False


def resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return width and height of the resized upright image, and left and top of the crop, rounded as in torchvision."""
    short, long = (1, 1) if preprocessing.squash else sorted((width, height))
    long_resized = preprocessing.resize * long // short
    resized_w, resized_h = (
        (preprocessing.resize, long_resized) if width <= height else (long_resized, preprocessing.resize)
    )
    left = round((resized_w - preprocessing.crop) / 2)
    top = round((resized_h - preprocessing.crop) / 2)
    return resized_w, resized_h, left, top


def stored_box(
    width: int, height: int, turn: Image.Transpose | None, preprocessing: Preprocessing
) -> tuple[float, float, float, float]:
    """Return the box of the stored image that becomes the crop: left, top, right, bottom in pixels."""
    swapped = turn in SWAPS_AXES
    if swapped:
        width, height = height, width
    resized_w, resized_h, left, top = resized_size(width, height, preprocessing)
    x0, x1 = left * width / resized_w, (left + preprocessing.crop) * width / resized_w
    y0, y1 = top * height / resized_h, (top + preprocessing.crop) * height / resized_h
    if swapped:  # back to the axes of the stored image
        width, height = height, width
        x0, y0, x1, y1 = y0, x0, y1, x1
    if turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90):
        x0, x1 = width - x1, width - x0
    if turn in (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270):
        y0, y1 = height - y1, height - y0
    if turn is Image.Transpose.TRANSVERSE:
        x0, x1, y0, y1 = width - x1, width - x0, height - y1, height - y0
    return max(0.0, x0), max(0.0, y0), min(x1, width), min(y1, height)


def crop_box(width: int, height: int, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """Return the box of an upright picture that becomes the crop: left, top, right, bottom in pixels."""
    return stored_box(width, height, None, preprocessing)


def reach(start: float, end: float, size: int, length: int, support: int) -> tuple[int, int]:
    """Return the range of pixels that a resize of ``start`` to ``end`` to ``size`` pixels reads.

    Returns the whole length unless it is at least twice as long as the box. ``support`` is the filter's radius.
    """
    if length < 2 * (end - start):
        return 0, length
    margin = support * max(1.0, (end - start) / size) + 1
    return max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))


def jpeg_scale(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Return the largest libjpeg scale that leaves the shorter edge at twice the resized size or more."""
    for scale in (8, 4, 2):
        if min(width, height) >= 2 * preprocessing.resize * scale:
            return scale
    return 1
