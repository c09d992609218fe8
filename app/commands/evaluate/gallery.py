"""Thumbnails for a report, cropped as the model sees the images: the central square."""

import base64
import io
from pathlib import Path

from PIL import Image

from app import images
from app.errors import BadImage
from app.images import Preprocessing

SIDE = 176  # pixels, shown at about half that
_QUALITY = 60
_CROP = Preprocessing(SIDE * 256 // 224, SIDE, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def thumbnail(file: Path, max_pixels: int) -> str | None:
    """A data URI of a few kilobytes, or None if the file can no longer be read."""
    try:
        crop = images.decode(images.read_header(file.read_bytes(), max_pixels), _CROP, fast=True)
    except (BadImage, OSError):
        return None
    small = io.BytesIO()
    Image.fromarray(crop).save(small, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
