"""AVIF and HEIF header parser (ISO/IEC 23008-12): reads the stated size and hides the EXIF items.

The size of the coded images may differ from the stated size. Therefore these files are always decoded in the sandbox.
"""

import re
from collections.abc import Iterator
from itertools import islice

from app.errors import UndecodableImage
from app.images.header import Header

# The ispe property, which states the size of an item, and the sample entries of image sequences
_SIZES = (
    re.compile(rb"ispe\0{4}(....)(....)", re.DOTALL),
    *(re.compile(kind + rb"\0{6}.{18}(..)(..)", re.DOTALL) for kind in (rb"av01", rb"hvc1", rb"hev1")),
)
_DESCRIBING = (b"meta", b"moov")
_MAX_DESCRIPTION = 2**24  # total bytes of these boxes; they hold the colour profile, which may have megabytes
_MAX_SIZES = 4096
_MAX_BOXES = 4096

Box = tuple[bytes, int, int]
"""The type, start and end of a box."""


def parse(data: bytes) -> Header:
    """Parse the header of a HEIF file. Raises UndecodableImage."""
    return Header(data, "HEIF", *_size(data, _boxes(data)), bounded=False)


def parse_avif(data: bytes) -> Header:
    """Parse the header of an AVIF file. Raises UndecodableImage."""
    boxes = _boxes(data)
    return Header(_without_exif(data, boxes), "AVIF", *_size(data, boxes), bounded=False)


def _boxes(data: bytes) -> list[Box]:
    """Return the top-level boxes (ISO/IEC 14496-12, 4.2)."""
    boxes, position, described = [], 0, 0
    while position < len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        end = min(position + size, len(data)) if size >= 8 else len(data)
        boxes.append((kind, position, end))
        described += end - position if kind in _DESCRIBING else 0
        if len(boxes) > _MAX_BOXES or described > _MAX_DESCRIPTION:
            raise UndecodableImage(
                f"the file has more than {_MAX_BOXES} boxes or more than {_MAX_DESCRIPTION} bytes of image descriptions"
            )
        position = end
    return boxes


def _size(data: bytes, boxes: list[Box]) -> tuple[int, int]:
    """Return width and height of the largest image in the file. Tiles and thumbnails are smaller."""
    found = list(islice(_sizes(data, boxes), _MAX_SIZES + 1))
    if not found:
        raise UndecodableImage("the file does not state the size of its image")
    if len(found) > _MAX_SIZES:
        raise UndecodableImage(f"the file describes more than {_MAX_SIZES} images")
    return max(found, key=lambda size: size[0] * size[1])


def _sizes(data: bytes, boxes: list[Box]) -> Iterator[tuple[int, int]]:
    for kind, start, end in boxes:
        if kind in _DESCRIBING:
            for pattern in _SIZES:
                for match in pattern.finditer(data, start, end):
                    yield int.from_bytes(match[1], "big"), int.from_bytes(match[2], "big")


def _without_exif(data: bytes, boxes: list[Box]) -> bytes:
    """Return the file with its EXIF items renamed, so that Pillow does not parse and rewrite them.

    They are not needed: irot and imir state the orientation of an AVIF image.
    """
    parts = (
        data[start:end].replace(b"Exif", b"skip") if kind in _DESCRIBING else memoryview(data)[start:end]
        for kind, start, end in boxes
    )
    return b"".join(parts)
