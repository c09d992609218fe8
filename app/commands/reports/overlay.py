"""A class activation map over a picture, and the frame of the crop."""

from PIL import Image, ImageDraw

from app.engine.base import Floats
from app.images.heatmap import COLOUR, opacity

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are outside."""

_FRAME = ((255, 255, 255), (0, 0, 0))  # two lines, so that one of them contrasts with the picture


def tint(picture: Image.Image, activation: Floats, box: Box) -> None:
    """Cover the box of an RGB picture with the map [rows, columns]."""
    size = box[2] - box[0], box[3] - box[1]
    picture.paste(COLOUR, box, Image.fromarray(opacity(activation, size)))


def frame(picture: Image.Image, box: Box) -> None:
    """Draw the edge of the box on an RGB picture, inside the box."""
    left, top, right, bottom = box
    width = max(1, max(picture.size) // 500)
    drawing = ImageDraw.Draw(picture)
    for inset, colour in zip((0, width), _FRAME, strict=True):
        edge = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
        if edge[0] < edge[2] and edge[1] < edge[3]:  # a box of a few pixels has no room
            drawing.rectangle(edge, outline=colour, width=width)
