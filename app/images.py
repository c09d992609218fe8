"""Bytes to a uint8 RGB crop. Runs on whichever thread decodes, never on the event loop; every Pillow error ends here.

The crop is the one torchvision's classification preset takes (``torchvision.transforms._presets``): the shorter
edge resized, the centre cropped. Only the crop is ever resized, so that a 10000x2 picture costs no more memory than
any other. One answer for each oddity:

- EXIF orientation is applied; animations and multi-page files give their first frame;
- transparency (alpha channel, palette or tRNS) is laid on white;
- 16-bit grey is cut to its high byte, 32-bit integer grey is read as 16-bit, floating-point grey as 0..255;
- CMYK, YCbCr and LAB are converted to RGB by Pillow, without colour management.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.errors import TooManyPixels, UndecodableImage, UnsupportedMediaType

Crop = npt.NDArray[np.uint8]

# Seconds a pixel costs to decode, measured on noise on one core of a 2025 server: an upper bound for photographs.
_SECONDS_PER_PIXEL = {"JPEG": 8e-9, "PNG": 25e-9, "WEBP": 30e-9, "AVIF": 60e-9, "HEIF": 60e-9, "GIF": 15e-9}
_SECONDS_PER_PIXEL_OTHER = 10e-9
_PROGRESSIVE = 4  # a progressive JPEG is held and scanned whole, at any scale

_ORIENTATION_TAG = 0x0112
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


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model expects: resize the shorter edge to ``resize``, crop ``crop`` x ``crop``, scale by mean and std.

    ``mean`` and ``std`` are for values in 0..1. ``resize >= crop``, as in every torchvision preset.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Header:
    """A picture judged by its first bytes; nothing is decoded yet. ``width`` and ``height`` as stored, in pixels."""

    data: bytes
    format: str
    width: int
    height: int
    progressive: bool = False

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(data: bytes, max_pixels: int) -> Header:
    """Judge format and size of an image file without decoding it.

    Raises UnsupportedMediaType, TooManyPixels or UndecodableImage.
    """
    format = sniff(data)
    if format is None:
        raise UnsupportedMediaType("the bytes are no JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or (where installed) HEIC")
    if format == "WEBP":  # Pillow allocates the whole canvas when it opens one
        width, height = _webp_size(data)
        header = Header(data, format, width, height)
    else:
        with _pillow_errors(), Image.open(io.BytesIO(data), formats=[format]) as image:
            header = Header(data, format, *image.size, progressive=bool(image.info.get("progressive")))
    if header.pixels > max_pixels:
        raise TooManyPixels(f"{header.width}x{header.height} pixels; at most {max_pixels} are decoded")
    return header


def decode_seconds(header: Header, preprocessing: Preprocessing, fast: bool) -> float:
    """Predicted seconds of one core to turn the file into a crop, from format and pixels."""
    seconds = header.pixels * _SECONDS_PER_PIXEL.get(header.format, _SECONDS_PER_PIXEL_OTHER)
    if header.format == "JPEG":
        if header.progressive:
            return seconds * _PROGRESSIVE
        if fast and _jpeg_scale(header.width, header.height, preprocessing) > 1:
            return seconds / 3
    return seconds


def decode(header: Header, preprocessing: Preprocessing, fast: bool) -> Crop:
    """Decode, turn upright, resize and crop.

    Returns uint8 RGB of shape [crop, crop, 3]. With ``fast`` a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size,
    never below twice the size resized to. Raises UndecodableImage.
    """
    with _pillow_errors(), Image.open(io.BytesIO(header.data), formats=[header.format]) as image:
        scale = 1
        if fast and header.format == "JPEG":
            scale = _jpeg_scale(*image.size, preprocessing)
        return _crop(image, scale, preprocessing)


def _crop(image: Image.Image, scale: int, preprocessing: Preprocessing) -> Crop:
    width, height = image.size
    turn = None if image.format == "TIFF" else _UPRIGHT.get(_orientation(image))  # Pillow turns TIFFs itself
    box = _stored_box(width, height, turn, preprocessing)
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))
        box = (box[0] / scale, box[1] / scale, min(box[2] / scale, image.width), min(box[3] / scale, image.height))
    image.load()
    resample = Image.Resampling.BICUBIC if preprocessing.interpolation == "bicubic" else Image.Resampling.BILINEAR
    upright = _plain(image).resize((preprocessing.crop, preprocessing.crop), resample, box=box)
    if turn is not None:
        upright = upright.transpose(turn)
    return _on_white(upright)


def _stored_box(
    width: int, height: int, turn: Image.Transpose | None, preprocessing: Preprocessing
) -> tuple[float, float, float, float]:
    """The box of the stored picture that becomes the crop: torchvision's geometry, worked out upright."""
    swapped = turn in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
    )
    if swapped:
        width, height = height, width
    short, long = sorted((width, height))
    long_resized = preprocessing.resize * long // short
    resized_w, resized_h = (
        (preprocessing.resize, long_resized) if width <= height else (long_resized, preprocessing.resize)
    )
    left = round((resized_w - preprocessing.crop) / 2)
    top = round((resized_h - preprocessing.crop) / 2)
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


def _jpeg_scale(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Largest of libjpeg's scales that leaves the shorter edge at twice the size resized to, or more."""
    for scale in (8, 4, 2):
        if min(width, height) >= 2 * preprocessing.resize * scale:
            return scale
    return 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # an unreadable EXIF block says nothing about the picture
        return 1


def _plain(image: Image.Image) -> Image.Image:
    """One of L, RGB or RGBa (premultiplied), which Pillow resizes channel by channel."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _on_white(image: Image.Image) -> Crop:
    if image.mode == "RGBa":
        pixels = np.asarray(image).astype(np.uint16)
        crop: Crop = np.minimum(pixels[..., :3] + (255 - pixels[..., 3:]), 255).astype(np.uint8)
        return crop
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def sniff(data: bytes) -> str | None:
    """Pillow's name of the format by its magic bytes, or None for what we do not decode."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data[4:8] == b"ftyp":
        return _sniff_isobmff(data)
    return None


def _sniff_isobmff(data: bytes) -> str | None:
    """AVIF or HEIF by the brands of the file type box (ISO/IEC 14496-12, 4.3)."""
    length = min(int.from_bytes(data[:4], "big"), len(data), 256)
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} and heif_installed():
        return "HEIF"
    return None


def heif_installed() -> bool:
    """Whether Pillow can open HEIC, from the extra ``heif``; registers the plug-in the first time it is asked."""
    if "HEIF" in Image.OPEN:
        return True
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas width and height by the WebP container specification (RFC 9649, sections 2.5 to 2.7)."""
    try:
        match data[12:16]:
            case b"VP8X":
                return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
            case b"VP8L":
                (bits,) = struct.unpack_from("<I", data, 21)
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            case b"VP8 ":
                width, height = struct.unpack_from("<HH", data, 26)
                return width & 0x3FFF, height & 0x3FFF
    except struct.error:
        pass
    raise UndecodableImage("the WebP header is broken")


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Whatever Pillow or a codec raises on hostile bytes becomes one of ours."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels("the header announces more pixels than are decoded") from error
    except Exception as error:
        raise UndecodableImage("the image is truncated or corrupt") from error
