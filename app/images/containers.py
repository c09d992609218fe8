"""Reads the header of an image file: format, size and cost. Runs no code of Pillow or of a codec."""

import struct
from collections.abc import Callable

from app.errors import TooManyPixels, UndecodableImage, UnsupportedMediaType
from app.images import bmp, gif, heif, jpeg, mistaken, png, tiff, webp
from app.images.formats import sniff
from app.images.header import Header

MAX_PIXELS_UNSCALED = 50_000_000
"""Limit on the pixels of all images except JPEGs of a single scan, which are decoded row by row at a reduced scale."""

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

    ``max_pixels`` applies to JPEGs of a single scan. For all other images it is at most ``MAX_PIXELS_UNSCALED``.

    Raises UnsupportedMediaType, TooManyPixels or UndecodableImage.
    """
    format = sniff(data)
    if mistake := mistaken.describe(data, format):
        raise UnsupportedMediaType(mistake)
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
    single_scan = format == "JPEG" and not header.progressive
    most = max_pixels if single_scan else min(max_pixels, MAX_PIXELS_UNSCALED)
    if header.pixels > most:
        kind = "" if most == max_pixels else " for an image other than a JPEG of a single scan"
        raise TooManyPixels(
            f"the image has {header.width}x{header.height} pixels, more than the limit of {most}{kind}; resize it"
        )
    if header.stored > _PADDING * most:
        raise TooManyPixels(
            f"the tiles of the image have {header.stored} pixels, more than the limit of {_PADDING * most};"
            " use smaller tiles"
        )
    return header
