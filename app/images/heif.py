"""AVIF and HEIF files (ISO/IEC 23008-12): the size that the container states, and the file without its EXIF items.

The coded pictures inside may be of another size, so these files are always decoded in the sandbox.
"""

import re
from itertools import chain, islice

from app.errors import UndecodableImage
from app.images.header import Header

# The property that states the size of an item, and the sample entry of a picture in a sequence
_EXTENT = re.compile(rb"ispe\0{4}(....)(....)", re.DOTALL)
_SAMPLE = re.compile(rb"(?:av01|hvc1|hev1)\0{6}.{18}(..)(..)", re.DOTALL)
_MAX_SIZES = 4096  # of a picture of 48 million pixels in tiles of 512x512 there are 190
_MAX_BOXES = 4096


def parse(data: bytes) -> Header:
    """The header of a HEIF. Raises UndecodableImage."""
    return Header(data, "HEIF", *_size(data), bounded=False)


def parse_avif(data: bytes) -> Header:
    """The header of an AVIF. Raises UndecodableImage."""
    return Header(_without_exif(data), "AVIF", *_size(data), bounded=False)


def _size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest picture that the file describes: tiles and thumbnails are smaller."""
    found = list(islice(chain(_EXTENT.finditer(data), _SAMPLE.finditer(data)), _MAX_SIZES + 1))
    if not found:
        raise UndecodableImage("the file does not state the size of its picture")
    if len(found) > _MAX_SIZES:
        raise UndecodableImage(f"the file describes more than {_MAX_SIZES} pictures")
    sizes = [(int.from_bytes(match[1], "big"), int.from_bytes(match[2], "big")) for match in found]
    return max(sizes, key=lambda size: size[0] * size[1])


def _without_exif(data: bytes) -> bytes:
    """With its EXIF items hidden: Pillow would parse and write them anew, but irot and imir turn an AVIF."""
    parts, position = [], 0
    for _ in range(_MAX_BOXES):
        size = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        end = position + size if size >= 8 else len(data)
        box = data[position:end]
        parts.append(box.replace(b"Exif", b"skip") if kind in (b"meta", b"moov") else box)
        if end >= len(data):
            return b"".join(parts)
        position = end
    raise UndecodableImage(f"the AVIF has more than {_MAX_BOXES} boxes")
