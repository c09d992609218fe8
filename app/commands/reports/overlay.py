"""A class activation map over a picture: one colour, more opaque where more speaks for the class."""

import numpy as np
from PIL import Image, ImageDraw

from app.engine.base import Floats

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are outside."""

COLOUR = (230, 0, 190)  # magenta, which few photographs have
_STRONGEST = 0.7  # opacity of the largest contribution: the picture stays visible below it
_FRAME = ((255, 255, 255), (0, 0, 0))  # two lines, so that one of them contrasts with the picture


def tint(picture: Image.Image, activation: Floats, box: Box) -> None:
    """Cover the box of an RGB picture with the map [rows, columns]."""
    size = box[2] - box[0], box[3] - box[1]
    picture.paste(COLOUR, box, Image.fromarray(opacity(activation, size)))


def opacity(activation: Floats, size: tuple[int, int]) -> "np.typing.NDArray[np.uint8]":
    """The opacity of a map [rows, columns], scaled to ``size`` (width, height): uint8 [height, width].

    It is proportional to the contribution, and 0 where that is negative.
    """
    most = float(activation.max())
    if most <= 0:
        return np.zeros(size[::-1], np.uint8)
    shares = Image.fromarray(np.maximum(activation / most, 0).astype(np.float32))
    smooth = np.asarray(shares.resize(size, Image.Resampling.BICUBIC))
    return np.rint(255 * _STRONGEST * smooth.clip(0, 1)).astype(np.uint8)


def frame(picture: Image.Image, box: Box) -> None:
    """Draw the edge of the box on an RGB picture, inside the box."""
    left, top, right, bottom = box
    width = max(1, max(picture.size) // 500)
    drawing = ImageDraw.Draw(picture)
    for inset, colour in zip((0, width), _FRAME, strict=True):
        edge = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
        if edge[0] < edge[2] and edge[1] < edge[3]:  # a box of a few pixels has no room
            drawing.rectangle(edge, outline=colour, width=width)
