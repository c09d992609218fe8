"""WebP header parser (RFC 9649): reads the canvas size and whether all coding is lossy.

The size of a lossy image bounds the cost of its decode. A lossless image or a losslessly coded alpha channel may have
any number of Huffman tables of several kilobytes each.
"""

import struct

from app.errors import UndecodableImage
from app.images.directory import exif_orientation
from app.images.header import Header

_CHUNK = struct.Struct("<4sI")
_FIRST = 12  # bytes before the first chunk
_MAX_CHUNKS = 64
_LOSSLESS_ALPHA = 1  # the compression method of an ALPH chunk
_UNBOUNDED = frozenset({b"VP8L", b"ANIM", b"ANMF"})
_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # by chunk: its flag in the VP8X chunk


def parse(data: bytes) -> Header:
    """Parse the header of a WebP file.

    Raises UndecodableImage. Raises struct.error or IndexError if the header is truncated.
    """
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(data, "WEBP", width & 0x3FFF, height & 0x3FFF, channels=3)
    if kind == b"VP8L":
        [bits] = struct.unpack_from("<I", data, 21)
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return Header(data, "WEBP", *size, bounded=False, variant="lossless")
    if kind != b"VP8X" or len(data) < 30:
        raise UndecodableImage("the WebP header is corrupt or truncated")
    data, orientation = _without_metadata(data)
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    bounded = _is_lossy(data)
    variant = "" if bounded else "lossless"
    return Header(data, "WEBP", width, height, bounded=bounded, orientation=orientation, variant=variant)


def _is_lossy(data: bytes) -> bool:
    """Return whether an extended file has no lossless chunks and no animation. False if it has too many chunks."""
    position = _FIRST
    for _ in range(_MAX_CHUNKS):
        if position + _CHUNK.size > len(data):
            return True
        kind, length = _CHUNK.unpack_from(data, position)
        start = position + _CHUNK.size
        if kind in _UNBOUNDED or (kind == b"ALPH" and data[start] & 3 == _LOSSLESS_ALPHA):
            return False
        position = start + length + length % 2
    return False


def _without_metadata(data: bytes) -> tuple[bytes, int]:
    """Return an extended file without its profile, EXIF and XMP, which may be truncated, and the EXIF orientation.

    A file with too many chunks is returned as it is, with the orientation 0.
    """
    view, kept, orientation, flags, position = memoryview(data), [], 1, 0, _FIRST
    for _ in range(_MAX_CHUNKS):
        if position + _CHUNK.size > len(data):
            break
        kind, length = _CHUNK.unpack_from(data, position)
        start, end = position, min(position + _CHUNK.size + length + length % 2, len(data))
        flags |= _METADATA.get(kind, 0)
        if kind == b"EXIF":
            orientation = exif_orientation(data[start + _CHUNK.size : end])
        if kind not in _METADATA:
            kept.append(view[start:end])
        position = end
    else:
        return data, 0
    if not flags:
        return data, 1
    extended = bytearray(kept[0])
    extended[_CHUNK.size] &= ~flags
    return b"".join((_CHUNK.pack(b"RIFF", 4 + sum(map(len, kept))), b"WEBP", extended, *kept[1:])), orientation
