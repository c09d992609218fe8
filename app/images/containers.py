"""Reads the header of an image file: format, size and cost. Runs no code of Pillow or of a codec."""

import struct
from collections.abc import Callable

from app.errors import TooManyPixels, UndecodableImage, UnsupportedMediaType
from app.images import bmp, gif, heif, jpeg, png, tiff, webp
from app.images.formats import sniff
from app.images.header import Header

_PADDING = 2  # limit on the pixels of all tiles, padding included, as a multiple of the pixel limit

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
    """Read and check the header of an image file without decoding it.

    Raises UnsupportedMediaType, TooManyPixels or UndecodableImage.
    """
    format = sniff(data)
    if format is None:
        raise UnsupportedMediaType(
            "the bytes are not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or (if installed) HEIC image;"
            " send one of these formats"
        )
    try:
        header = _PARSERS[format](data)
    except (struct.error, LookupError, OverflowError) as error:
        raise UndecodableImage(f"the {format} header is corrupt or truncated") from error
    if header.width < 1 or header.height < 1:
        raise UndecodableImage(f"the {format} header states an invalid size: {header.width}x{header.height} pixels")
    if header.pixels > max_pixels:
        raise TooManyPixels(
            f"the image has {header.width}x{header.height} pixels, more than the limit of {max_pixels}; resize it"
        )
    if header.stored > _PADDING * max_pixels:
        raise TooManyPixels(
            f"the tiles of the image have {header.stored} pixels, more than the limit of {_PADDING * max_pixels};"
            " use smaller tiles"
        )
    return header
