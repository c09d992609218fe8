"""AVIF and HEIF files (ISO/IEC 23008-12): the size that the container states, and the file without its EXIF items.

The coded pictures inside may be of another size, so these files are always decoded in the sandbox.
"""

import re
from collections.abc import Iterator
from itertools import islice

from app.errors import UndecodableImage
from app.images.header import Header

# The property that states the size of an item, and the sample entries of a picture in a sequence
_SIZES = (
    re.compile(rb"ispe\0{4}(....)(....)", re.DOTALL),
    *(re.compile(kind + rb"\0{6}.{18}(..)(..)", re.DOTALL) for kind in (rb"av01", rb"hvc1", rb"hev1")),
)
_DESCRIBING = (b"meta", b"moov")
_MAX_DESCRIPTION = 2**20  # bytes of these boxes; that of a picture of 190 tiles has 20 KiB
_MAX_SIZES = 4096
_MAX_BOXES = 4096

Box = tuple[bytes, int, int]
"""A box's type, and where it starts and ends."""


def parse(data: bytes) -> Header:
    """The header of a HEIF. Raises UndecodableImage."""
    return Header(data, "HEIF", *_size(data, _boxes(data)), bounded=False)


def parse_avif(data: bytes) -> Header:
    """The header of an AVIF. Raises UndecodableImage."""
    boxes = _boxes(data)
    return Header(_without_exif(data, boxes), "AVIF", *_size(data, boxes), bounded=False)


def _boxes(data: bytes) -> list[Box]:
    """The boxes at the top level (ISO/IEC 14496-12, 4.2)."""
    boxes, position, described = [], 0, 0
    while position < len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        end = min(position + size, len(data)) if size >= 8 else len(data)
        boxes.append((kind, position, end))
        described += end - position if kind in _DESCRIBING else 0
        if len(boxes) > _MAX_BOXES or described > _MAX_DESCRIPTION:
            raise UndecodableImage("the file has too many boxes, or too large ones, that describe its pictures")
        position = end
    return boxes


def _size(data: bytes, boxes: list[Box]) -> tuple[int, int]:
    """Width and height of the largest picture that the file describes: tiles and thumbnails are smaller."""
    found = list(islice(_sizes(data, boxes), _MAX_SIZES + 1))
    if not found:
        raise UndecodableImage("the file does not state the size of its picture")
    if len(found) > _MAX_SIZES:
        raise UndecodableImage(f"the file describes more than {_MAX_SIZES} pictures")
    return max(found, key=lambda size: size[0] * size[1])


def _sizes(data: bytes, boxes: list[Box]) -> Iterator[tuple[int, int]]:
    for kind, start, end in boxes:
        if kind in _DESCRIBING:
            for pattern in _SIZES:
                for match in pattern.finditer(data, start, end):
                    yield int.from_bytes(match[1], "big"), int.from_bytes(match[2], "big")


def _without_exif(data: bytes, boxes: list[Box]) -> bytes:
    """With its EXIF items hidden: Pillow would parse and write them anew, but irot and imir turn an AVIF."""
    parts = (
        data[start:end].replace(b"Exif", b"skip") if kind in _DESCRIBING else memoryview(data)[start:end]
        for kind, start, end in boxes
    )
    return b"".join(parts)
