"""PNG files: the chunks that pixels need, and nothing else (PNG specification, third edition, section 5).

A file may hold thousands of compressed profiles and texts, before and behind the pixels, each of which Pillow unpacks.
They are left out, as are the frames of an animation after the first.
"""

import struct
from collections.abc import Iterator

from app.errors import UndecodableImage
from app.images.header import Header
from app.images.tiff import exif_orientation

_SIGNATURE = 8  # bytes
_CHUNK = struct.Struct(">I4s")
_FRAME = 12  # bytes of a chunk's length, type and checksum
_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_MAX_CHUNKS = 32_768  # of 20 MiB in IDAT chunks of 8 KiB, as libpng writes them, there are 2 560
_CHANNELS = {0: 1, 2: 3, 3: 4, 4: 4, 6: 4}  # by colour type; a palette may be transparent


def parse(data: bytes) -> Header:
    """The header of a PNG. Raises UndecodableImage; struct.error for a file that ends within its header."""
    if data[12:16] != b"IHDR":
        raise UndecodableImage("the PNG does not start with an IHDR chunk")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    orientation, kept, parts, position = 1, [(0, _SIGNATURE)], 0, _SIGNATURE
    for kind, start, stop in _chunks(data):
        if kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : stop - 4])
        elif kind in _KEPT:
            parts += 1
            if start == position:
                kept[-1] = (kept[-1][0], stop)
            else:
                kept.append((start, stop))
            position = stop
    if kept != [(0, len(data))]:
        data = b"".join(data[start:stop] for start, stop in kept)
    return Header(
        data,
        "PNG",
        width,
        height,
        orientation=orientation,
        parts=parts,
        channels=_CHANNELS.get(colour, 4),
        variant="deep" if depth == 16 else "",
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk up to IEND, the last one cut short where the file is."""
    start = _SIGNATURE
    for _ in range(_MAX_CHUNKS):
        if start + _CHUNK.size > len(data):
            return
        length, kind = _CHUNK.unpack_from(data, start)
        stop = min(start + _FRAME + length, len(data))
        yield kind, start, stop
        if kind == b"IEND":
            return
        start = stop
    raise UndecodableImage(f"the PNG has more than {_MAX_CHUNKS} chunks")
