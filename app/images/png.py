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
_CHUNKS = 8192  # and one more for each KiB of the file; libpng writes 8 KiB a chunk
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_SURPLUS = 65_536  # bytes that pixels may take in the file beyond 1.01 times what they take unpacked


def parse(data: bytes) -> Header:
    """The header of a PNG. Raises UndecodableImage; struct.error for a file that ends within its header."""
    if data[12:16] != b"IHDR":
        raise UndecodableImage("the PNG does not start with an IHDR chunk")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    kept, exif, parts, coded, transparent = [(0, _SIGNATURE)], (0, 0), 0, 0, False
    for kind, start, stop in _chunks(data):
        if kind == b"eXIf":
            exif = start + 8, stop - 4
        if kind not in _KEPT:
            continue
        if kind == b"IHDR" and parts:
            raise UndecodableImage("the PNG has more than one IHDR chunk")
        parts += 1
        coded += stop - start if kind == b"IDAT" else 0
        transparent |= kind == b"tRNS"
        if start == kept[-1][1]:
            kept[-1] = (kept[-1][0], stop)
        else:
            kept.append((start, stop))
    whole = kept == [(0, len(data))]
    unpacked = height * (1 + (width * _SAMPLES.get(colour, 4) * depth + 7) // 8)
    return Header(
        data if whole else b"".join(data[start:stop] for start, stop in kept),
        "PNG",
        width,
        height,
        bounded=coded <= 1.01 * unpacked + _SURPLUS,  # more unpacks to nothing, at any cost
        orientation=exif_orientation(data[slice(*exif)]),
        parts=parts,
        channels=4 if transparent else _channels(colour, depth),
        variant="deep" if colour == 0 and depth == 16 else "",
    )


def _channels(colour: int, depth: int) -> int:
    """Channels of what an opaque picture becomes: one bit, and a palette, become colour."""
    if colour == 0:
        return 3 if depth == 1 else 1
    return 3 if colour in (2, 3) else 4


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk up to IEND, the last one cut short where the file is."""
    start = _SIGNATURE
    for _ in range(_CHUNKS + len(data) // 1024):
        if start + _CHUNK.size > len(data):
            return
        length, kind = _CHUNK.unpack_from(data, start)
        stop = min(start + _FRAME + length, len(data))
        yield kind, start, stop
        if kind == b"IEND":
            return
        start = stop
    raise UndecodableImage("the PNG has too many chunks")
