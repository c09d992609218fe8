"""A class activation map as one colour, more opaque where more supports the class."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

COLOUR = (214, 0, 122)  # magenta, which few photographs have; the page has the same in style.css
_STRONGEST = 0.7  # opacity of the largest contribution: the picture stays visible below it

Activation = npt.NDArray[np.floating]
"""The contributions to a class, [rows, columns]."""


def opacity(activation: Activation, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The opacity of a map, scaled to ``size`` (width, height): uint8 [height, width].

    It is proportional to the contribution, rounded up, and 0 where the contribution is not positive.
    """
    most = float(activation.max())
    if most <= 0:
        return np.zeros(size[::-1], np.uint8)
    shares = Image.fromarray(np.maximum(activation / most, 0).astype(np.float32))
    smooth = np.asarray(shares.resize(size, Image.Resampling.BICUBIC))
    return np.ceil(255 * _STRONGEST * smooth.clip(0, 1)).astype(np.uint8)


def png(activation: Activation) -> bytes:
    """An RGBA PNG of a map, with one pixel for each contribution."""
    rows, columns = activation.shape
    picture = Image.new("RGB", (columns, rows), COLOUR)
    picture.putalpha(Image.fromarray(opacity(activation, picture.size)))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
