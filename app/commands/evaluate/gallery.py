"""Thumbnails for a report, cropped as the model sees the images, also with a class activation map."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from app import images
from app.commands.reports import overlay
from app.engine.base import Floats
from app.errors import BadImage
from app.images import Preprocessing

SIDE = 176  # pixels, shown at about half that
_QUALITY = 60


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Data URIs of a few kilobytes each. ``mapped`` has the class activation map, if there is one."""

    plain: str
    mapped: str | None


def thumbnails(
    file: Path, preprocessing: Mapping[str, Any], max_pixels: int, activation: Floats | None = None
) -> Thumbnails | None:
    """The thumbnails of an image, or None if the file can no longer be read.

    ``preprocessing`` is that of the model, as ``/v1/info`` has it; ``activation`` is a map [rows, columns] of the crop.
    """
    try:
        crop = images.decode(images.read_header(file.read_bytes(), max_pixels), _small(preprocessing), fast=True)
    except (BadImage, OSError):
        return None
    picture = Image.fromarray(crop)
    plain = _uri(picture)
    if activation is None:
        return Thumbnails(plain, None)
    overlay.tint(picture, activation, (0, 0, SIDE, SIDE))
    return Thumbnails(plain, _uri(picture))


def _small(preprocessing: Mapping[str, Any]) -> Preprocessing:
    """The same crop in fewer pixels."""
    resize = round(SIDE * preprocessing["resize"] / preprocessing["crop"])
    half = (0.5, 0.5, 0.5)
    return Preprocessing(resize, SIDE, "bilinear", half, half, bool(preprocessing.get("squash")))


def _uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
