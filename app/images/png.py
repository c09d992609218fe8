"""PNG header parser: keeps only the chunks that the pixels need (PNG specification, third edition, section 5).

A file may contain thousands of compressed profiles and texts before and after the pixels. Pillow would decompress each
of them. They are removed, and so are all frames of an animation after the first.
"""

import struct
import zlib
from collections.abc import Iterator

from app.errors import UndecodableImage
from app.images.directory import exif_orientation
from app.images.header import Header

_SIGNATURE = 8  # bytes
_CHUNK = struct.Struct(">I4s")
_FRAME = 12  # bytes of the length, type and checksum of a chunk
_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_TRANSPARENT = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}  # bytes of a valid tRNS chunk, by colour type
_CHUNKS = 8192  # plus one for each KiB of the file; libpng writes 8 KiB per chunk
_PALETTE = 3  # colour type
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_SURPLUS = 65_536  # bytes by which the compressed pixels may exceed 1.01 times the raw pixels


def parse(data: bytes) -> Header:
    """Parse the header of a PNG file.

    Raises UndecodableImage. Raises struct.error if the header is truncated.
    """
    if data[12:16] != b"IHDR":
        raise UndecodableImage("the PNG does not start with an IHDR chunk")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    sizes = _TRANSPARENT.get(colour, ())
    kept, exif, parts, coded, transparent = [(0, _SIGNATURE)], (0, 0), 0, 0, False
    for kind, start, stop in _chunks(data):
        if kind == b"eXIf" and _is_intact(data, start, stop):
            exif = start + 8, stop - 4
        if kind not in _KEPT or (kind == b"PLTE" and colour != _PALETTE):
            continue
        if kind == b"tRNS" and not (_is_intact(data, start, stop) and stop - start - _FRAME in sizes):
            continue  # an ancillary chunk: decoders ignore it if it is invalid
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
        bounded=coded <= 1.01 * unpacked + _SURPLUS,  # surplus data yields no pixels, but costs time
        orientation=exif_orientation(data[slice(*exif)]),
        parts=parts,
        channels=4 if transparent else _channels(colour, depth),
        variant="deep" if colour == 0 and depth == 16 else "",
    )


def _is_intact(data: bytes, start: int, stop: int) -> bool:
    """Return whether the checksum of a chunk is right."""
    return zlib.crc32(memoryview(data)[start + 4 : stop - 4]).to_bytes(4, "big") == data[stop - 4 : stop]


def _channels(colour: int, depth: int) -> int:
    """Return the channels after conversion, without tRNS. 1-bit and palette images are converted to RGB."""
    if colour == 0:
        return 3 if depth == 1 else 1
    return 3 if colour in (2, 3) else 4


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each chunk up to IEND. In a truncated file the last chunk ends with the file."""
    start = _SIGNATURE
    most = _CHUNKS + len(data) // 1024
    for _ in range(most):
        if start + _CHUNK.size > len(data):
            return
        length, kind = _CHUNK.unpack_from(data, start)
        stop = min(start + _FRAME + length, len(data))
        yield kind, start, stop
        if kind == b"IEND":
            return
        start = stop
    raise UndecodableImage(f"the PNG has more than {most} chunks")
