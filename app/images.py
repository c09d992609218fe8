"""Bytes to a uint8 RGB crop. Runs on whichever thread decodes, never on the event loop; every Pillow error ends here.

The crop is the one torchvision's classification preset takes (``torchvision.transforms._presets``): the shorter
edge resized, the centre cropped. Of a very long picture only the crop is resized, so that 10000x2 pixels cost no more
memory than any others. One answer for each oddity:

- EXIF orientation is applied (not that of XMP); animations and multi-page files give their first frame;
- transparency (alpha channel, palette or tRNS) is laid on white;
- 16-bit grey is cut to its high byte, 32-bit integer grey is read as 16-bit, floating-point grey as 0..255;
- CMYK, YCbCr and LAB are converted to RGB by Pillow, without colour management.
"""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from app import containers
from app.errors import TooManyPixels, UndecodableImage, UnsupportedMediaType

Crop = npt.NDArray[np.uint8]

# Seconds of one core that a pixel and a byte of the file cost, fitted to flat colour, photographs and noise of 8.6
# million pixels in every mode (alpha, palette, 16-bit), on one core of a 2025 server
_SECONDS = {
    "JPEG": (4.5e-9, 7e-9),
    "PNG": (10e-9, 11e-9),
    "WEBP": (15e-9, 25e-9),
    "AVIF": (12e-9, 62e-9),
    "HEIF": (14e-9, 88e-9),
    "GIF": (6e-9, 6e-9),
    "TIFF": (7e-9, 2e-9),
    "BMP": (5e-9, 0.0),
}
_SECONDS_PER_PIXEL_AND_SCAN = 0.3e-9  # a progressive JPEG is scanned whole, at any scale
_SECONDS_PER_BYTE_PROGRESSIVE = 26e-9
_SECONDS_PER_BYTE_LOSSLESS = 12e-9
_SECONDS_RUN_LENGTH = (50e-9, 250e-9)  # Pillow decodes run-length coded BMPs in Python

# libavif decodes what the stream holds and scales it to what the header announces; it gives up above 16384x16384
_AVIF_PIXELS = 16384 * 16384 // 2  # half, since it takes no more than half the bytes for each that the worst takes

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_WHOLE = 8  # times as long as wide, at the most, a picture is resized whole
_RESAMPLING = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}  # and its radius
# EXIF orientation -> how Pillow turns the stored picture upright (the inverse pairs are spelled out in EXIF 2.3, 4.6.4)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_AXES = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model expects: resize the shorter edge to ``resize``, crop ``crop`` x ``crop``, scale by mean and std.

    ``mean`` and ``std`` are for values in 0..1. ``resize >= crop``, as in every torchvision preset. With ``squash``
    both edges are resized to ``resize``, which some of timm's models are trained on.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """A picture judged by its first bytes; nothing is decoded yet.

    ``data`` is the file without metadata that costs more than it is worth; ``width`` and ``height`` are as stored, in
    pixels; ``progressive`` is a JPEG in several scans, which is held whole while it is decoded; ``orientation`` is
    EXIF's, or 0 where only the opened file tells.
    """

    data: bytes
    format: str
    width: int
    height: int
    progressive: bool = False
    scans: int = 1
    orientation: int = 0

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(data: bytes, max_pixels: int) -> Header:
    """Judge format and size of an image file without decoding it.

    Raises UnsupportedMediaType, TooManyPixels or UndecodableImage.
    """
    format = containers.sniff(data)
    if format is None:
        raise UnsupportedMediaType("the bytes are no JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or (where installed) HEIC")
    if format == "WEBP":  # Pillow allocates the whole canvas when it opens one
        width, height = containers.webp_size(data)
        header = Header(data, format, width, height)
    else:
        with _pillow_errors():
            lean = containers.lean(data, format)
            with Image.open(containers.open_file(lean.data, format), formats=[format]) as image:
                progressive = lean.scans > 1 or "progressive" in image.info
                header = Header(lean.data, format, *image.size, progressive, lean.scans, lean.orientation)
    if header.pixels > max_pixels:
        raise TooManyPixels(f"{header.width}x{header.height} pixels; at most {max_pixels} are decoded")
    return header


def decode_seconds(header: Header, preprocessing: Preprocessing, fast: bool) -> float:
    """Predicted seconds of one core to turn the file into a crop, from format and pixels."""
    per_pixel, per_byte = _SECONDS[header.format]
    if header.format == "JPEG":
        if fast:
            per_pixel /= _jpeg_scale(header.width, header.height, preprocessing)
        if header.progressive:
            per_pixel += header.scans * _SECONDS_PER_PIXEL_AND_SCAN
            per_byte = _SECONDS_PER_BYTE_PROGRESSIVE
    if header.format == "WEBP" and header.data[12:16] == b"VP8L":
        per_byte = _SECONDS_PER_BYTE_LOSSLESS
    if header.format == "BMP" and header.data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        per_pixel, per_byte = _SECONDS_RUN_LENGTH
    return header.pixels * per_pixel + len(header.data) * per_byte


def pixels_at_most(header: Header) -> int:
    """Pixels that decoding may have to hold. That is what the header says, but for AVIF, whose header binds nobody."""
    return max(header.pixels, _AVIF_PIXELS) if header.format == "AVIF" else header.pixels


def decode(header: Header, preprocessing: Preprocessing, fast: bool) -> Crop:
    """Decode, turn upright, resize and crop.

    Returns uint8 RGB of shape [crop, crop, 3]. With ``fast`` only the crop is resized, which may differ by a grey
    level, and a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, never below twice the size resized to. Raises
    UndecodableImage.
    """
    with _opened(header) as image:
        return _crop(image, header.orientation, fast, preprocessing)


def decode_whole(header: Header, preprocessing: Preprocessing) -> Crop:
    """Decode and turn upright, for crops of one's own: uint8 RGB of shape [height, width, 3].

    A large JPEG is decoded at a reduced scale as with ``decode``'s ``fast``. Raises UndecodableImage.
    """
    with _opened(header) as image:
        _, turn = _load(image, header.orientation, True, preprocessing)
        plain = _plain(image)
        return _on_white(plain if turn is None else plain.transpose(turn))


@contextmanager
def _opened(header: Header) -> Iterator[Image.Image]:
    with (
        _pillow_errors(),
        Image.open(containers.open_file(header.data, header.format), formats=[header.format]) as image,
    ):
        yield image


def _load(
    image: Image.Image, orientation: int, fast: bool, preprocessing: Preprocessing
) -> tuple[int, Image.Transpose | None]:
    """Decode the pixels: the fraction of its size that they are, and how they are turned upright."""
    width, height = image.size
    scale = _jpeg_scale(width, height, preprocessing) if fast and image.format in ("JPEG", "MPO") else 1
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))
    image.load()  # before its EXIF is asked for: that of a PNG may stand at its end
    return scale, _UPRIGHT.get(orientation or containers.exif_orientation(image.info.get("exif") or b""))


def _crop(image: Image.Image, orientation: int, fast: bool, preprocessing: Preprocessing) -> Crop:
    width, height = image.size
    scale, turn = _load(image, orientation, fast, preprocessing)
    if not fast and max(width, height) <= _WHOLE * min(width, height):
        return _on_white(_crop_of_whole(_plain(image), turn, preprocessing))
    box = _stored_box(width, height, turn, preprocessing)
    if scale > 1:
        box = (box[0] / scale, box[1] / scale, min(box[2] / scale, image.width), min(box[3] / scale, image.height))
    upright = _resized(_plain(image), box, turn in _SWAPS_AXES, preprocessing)
    if turn is not None:
        upright = upright.transpose(turn)
    return _on_white(upright)


def _crop_of_whole(image: Image.Image, turn: Image.Transpose | None, preprocessing: Preprocessing) -> Image.Image:
    """The crop to the last bit as torchvision takes it: the whole picture turned, resized, and only then cropped."""
    if turn is not None:
        image = image.transpose(turn)
    resized_w, resized_h, left, top = _geometry(*image.size, preprocessing)
    resized = image.resize((resized_w, resized_h), _RESAMPLING[preprocessing.interpolation][0])
    return resized.crop((left, top, left + preprocessing.crop, top + preprocessing.crop))


def _geometry(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Width and height of the upright picture once resized, left and top of the crop in it, as torchvision rounds."""
    short, long = (1, 1) if preprocessing.squash else sorted((width, height))
    long_resized = preprocessing.resize * long // short
    resized_w, resized_h = (
        (preprocessing.resize, long_resized) if width <= height else (long_resized, preprocessing.resize)
    )
    left = round((resized_w - preprocessing.crop) / 2)
    top = round((resized_h - preprocessing.crop) / 2)
    return resized_w, resized_h, left, top


def _stored_box(
    width: int, height: int, turn: Image.Transpose | None, preprocessing: Preprocessing
) -> tuple[float, float, float, float]:
    """The box of the stored picture that becomes the crop."""
    swapped = turn in _SWAPS_AXES
    if swapped:
        width, height = height, width
    resized_w, resized_h, left, top = _geometry(width, height, preprocessing)
    x0, x1 = left * width / resized_w, (left + preprocessing.crop) * width / resized_w
    y0, y1 = top * height / resized_h, (top + preprocessing.crop) * height / resized_h
    if swapped:  # back to the axes of the stored picture
        width, height = height, width
        x0, y0, x1, y1 = y0, x0, y1, x1
    if turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90):
        x0, x1 = width - x1, width - x0
    if turn in (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270):
        y0, y1 = height - y1, height - y0
    if turn is Image.Transpose.TRANSVERSE:
        x0, x1, y0, y1 = width - x1, width - x0, height - y1, height - y0
    return max(0.0, x0), max(0.0, y0), min(x1, width), min(y1, height)


def _resized(
    image: Image.Image, box: tuple[float, float, float, float], swapped: bool, preprocessing: Preprocessing
) -> Image.Image:
    """The box as a square, its upright rows resized before its upright columns, as in a picture resized whole.

    Left alone, Pillow 13 chooses the order by the sizes: bicubic overshoots are clipped in between, so that it shows.
    """
    resample, support = _RESAMPLING[preprocessing.interpolation]
    size = preprocessing.crop
    x0, y0, x1, y1 = box
    if swapped:
        left, right = _reach(x0, x1, size, image.width, support)
        columns = image.resize((right - left, size), resample, (left, y0, right, y1))
        return columns.resize((size, size), resample, (x0 - left, 0, x1 - left, size))
    top, bottom = _reach(y0, y1, size, image.height, support)
    rows = image.resize((size, bottom - top), resample, (x0, top, x1, bottom))
    return rows.resize((size, size), resample, (0, y0 - top, size, y1 - top))


def _reach(start: float, end: float, size: int, length: int, support: int) -> tuple[int, int]:
    """The pixels that count when ``start`` to ``end`` become ``size`` pixels; all of them unless that is wasteful."""
    if length < 2 * (end - start):
        return 0, length
    margin = support * max(1.0, (end - start) / size) + 1
    return max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))


def _jpeg_scale(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Largest of libjpeg's scales that leaves the shorter edge at twice the size resized to, or more."""
    for scale in (8, 4, 2):
        if min(width, height) >= 2 * preprocessing.resize * scale:
            return scale
    return 1


def _plain(image: Image.Image) -> Image.Image:
    """One of L, RGB or RGBa (premultiplied), which Pillow resizes channel by channel."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        return image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "F":
        return image.convert("L")
    if image.has_transparency_data:
        return (image if image.mode == "RGBA" else image.convert("RGBA")).convert("RGBa")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _on_white(image: Image.Image) -> Crop:
    if image.mode == "RGBa":
        pixels = np.asarray(image).astype(np.uint16)
        crop: Crop = np.minimum(pixels[..., :3] + (255 - pixels[..., 3:]), 255).astype(np.uint8)
        return crop
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Whatever Pillow or a codec raises on hostile bytes becomes one of ours; what it warns of is nobody's business.

    Python remembers every text it has shown as a warning, and these hold numbers that the client chooses.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels("the header announces more pixels than are decoded") from error
    except UndecodableImage:
        raise
    except Exception as error:
        raise UndecodableImage("the image is truncated or corrupt") from error
