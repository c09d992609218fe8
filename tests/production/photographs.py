"""Photographs that differ: the cat as many cameras would have taken it."""

import io
import random

from PIL import Image, ImageEnhance

from tests.conftest import CAT


def photograph(seed: int) -> bytes:
    """The photograph of the cat as another camera would have taken it: cropped, turned, darker or brighter."""
    chance = random.Random(seed)
    with Image.open(CAT) as picture:
        width, height = picture.size
        part = chance.uniform(0.6, 1.0)
        left, top = (chance.uniform(0, (1 - part) * edge) for edge in (width, height))
        made = picture.crop((round(left), round(top), round(left + part * width), round(top + part * height)))
        made = ImageEnhance.Brightness(made.rotate(chance.uniform(-10, 10))).enhance(chance.uniform(0.6, 1.4))
    return jpeg(made)


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG")
    return file.getvalue()
