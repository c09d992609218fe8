"""Judges a file by its container: format, size and cost, without any code of Pillow or a codec."""

import struct
from collections.abc import Callable

from app.errors import TooManyPixels, UndecodableImage, UnsupportedMediaType
from app.images import bmp, gif, heif, jpeg, png, tiff, webp
from app.images.formats import sniff
from app.images.header import Header

_PADDING = 2  # times as many pixels as are decoded may be stored in whole tiles

_PARSERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": jpeg.parse,
    "PNG": png.parse,
    "GIF": gif.parse,
    "BMP": bmp.parse,
    "WEBP": webp.parse,
    "TIFF": tiff.parse,
    "AVIF": heif.parse_avif,
    "HEIF": heif.parse,
}


def read_header(data: bytes, max_pixels: int) -> Header:
    """Judge an image file without decoding it.

    Raises UnsupportedMediaType, TooManyPixels or UndecodableImage.
    """
    format = sniff(data)
    if format is None:
        raise UnsupportedMediaType("the bytes are no JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or (where installed) HEIC")
    try:
        header = _PARSERS[format](data)
    except (struct.error, LookupError, OverflowError) as error:
        raise UndecodableImage(f"the {format} header is broken or cut short") from error
    if header.width < 1 or header.height < 1:
        raise UndecodableImage(f"the {format} header states a size of {header.width}x{header.height} pixels")
    if header.pixels > max_pixels:
        raise TooManyPixels(f"{header.width}x{header.height} pixels; at most {max_pixels} are decoded")
    if header.stored > _PADDING * max_pixels:
        raise TooManyPixels(f"{header.stored} pixels in whole tiles; at most {_PADDING * max_pixels} are decoded")
    return header
