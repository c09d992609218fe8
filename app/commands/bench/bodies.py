"""The images to send, from a folder or generated, as request bodies."""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from app import images
from app.commands.filenames import left_out, printable
from app.commands.files import check_regular, reason
from app.errors import LoadTestError
from app.images.files import Skipped, find_images

GENERATED = 48
SIZES = ((500, 375), (375, 500), (500, 333), (480, 360))
SEED = 2012
MAX_BYTES = 512 * 2**20  # of a folder, held in memory
_BOUNDARY = "topk-bench-7d3f0c9e51ab"


@dataclass(frozen=True, slots=True)
class Body:
    """A request body and its ``Content-Type``."""

    content: bytes
    content_type: str


class Bodies(NamedTuple):
    """Request bodies, and sentences about what was left out of their folder."""

    bodies: list[Body]
    notes: list[str]


def bodies(folder: Path | None, multipart: bool) -> Bodies:
    """At least one body. Raises LoadTestError if the folder has no image."""
    skipped = Skipped()
    found = list(read(folder, skipped) if folder else generated())
    return Bodies([form(body) for body in found] if multipart else found, left_out(skipped))


def read(folder: Path, skipped: Skipped) -> Iterator[Body]:
    """The images in a folder and its subfolders, in a shuffled but constant order, up to ``MAX_BYTES``.

    What is left out is added to ``skipped``. Raises LoadTestError.
    """
    try:
        found = find_images(folder)
    except OSError as error:
        raise LoadTestError(f"{printable(folder)} cannot be read: {reason(error)}") from error
    skipped.add(found.skipped)
    paths = list(found.paths)
    random.Random(SEED).shuffle(paths)  # noqa: S311  # not for cryptography
    held = 0
    for path in paths:
        try:
            check_regular(path)
            content = path.read_bytes()
        except OSError as error:
            skipped.unreadable[path] = reason(error)
            continue
        if held and held + len(content) > MAX_BYTES:
            break
        if format := images.sniff(content):
            held += len(content)
            yield Body(content, f"image/{format.lower()}")
        else:
            skipped.others += 1
    if not held:
        raise LoadTestError("; ".join([f"no images in {printable(folder)}", *left_out(skipped)]))


def generated(count: int = GENERATED) -> Iterator[Body]:
    """JPEGs that cost as much as photographs of ImageNet: about 500x375, 60 to 150 kB. They are always the same."""
    rng = np.random.default_rng(SEED)
    for number in range(count):
        picture = _picture(rng, *SIZES[number % len(SIZES)])
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        yield Body(file.getvalue(), "image/jpeg")


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise at several scales: large shapes, texture and grain."""
    pixels = np.full((height, width, 3), rng.uniform(90, 160), np.float32)
    for cells, strength in ((4, 70), (16, 35), (64, 22), (384, rng.uniform(14, 44))):
        coarse = rng.normal(0, strength, (cells * height // width + 1, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def form(body: Body) -> Body:
    """The same image as the field ``file`` of ``multipart/form-data`` (RFC 7578)."""
    head = (
        f"--{_BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="image"\r\n'
        f"Content-Type: {body.content_type}\r\n\r\n"
    )
    content = head.encode() + body.content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Body(content, f"multipart/form-data; boundary={_BOUNDARY}")
