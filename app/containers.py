"""Image files before Pillow sees them: which format, how large, and without the metadata that costs too much.

A file of 20 MiB can hold millions of segments, tags or EXIF rationals, each of which costs Pillow microseconds of
Python before the first pixel. What describes pixels is kept, the orientation is read here, the rest is dropped where it
is large.
"""

import contextlib
import ctypes
import functools
import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, _imaging

from app.errors import UndecodableImage

_MAX_PARTS = 65_535  # segments of a JPEG, tags of a TIFF, boxes of an AVIF
_MAX_STRIPS = 20_000  # or tiles of a TIFF
_MAX_READS = 100_000  # two or three for each chunk of a PNG, two for each block of a GIF
_MAX_METADATA = 65_536  # bytes of a JPEG; to copy the file without less than this costs more than to parse it
_MAX_SCANS = 200  # encoders write about 10; a scan of 80 bytes goes over every pixel

_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # but those without a segment: TEM, RSTn, SOI

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_TIFF_INTEGERS = {3: "H", 4: "L"}
_TIFF_ENTRY = ("HHL4s", "HHQ8s")  # TIFF 6.0, BigTIFF
# What describes pixels (TIFF 6.0): size, bits, colours, compression (CCITT, predictor, JPEG), strips, tiles, alpha
_TIFF_TAGS = frozenset({256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325})
_TIFF_TAGS |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}
_ORIENTATION_TAG = 0x0112


def sniff(data: bytes) -> str | None:
    """Pillow's name of the format by its magic bytes, or None for what we do not decode."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data[4:8] == b"ftyp":
        return _sniff_isobmff(data)
    return None


def _sniff_isobmff(data: bytes) -> str | None:
    """AVIF or HEIF by the brands of the file type box (ISO/IEC 14496-12, 4.3)."""
    length = min(int.from_bytes(data[:4], "big"), len(data), 256)
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} and heif_installed():
        return "HEIF"
    return None


def heif_installed() -> bool:
    """Whether Pillow can open HEIC, from the extra ``heif``; registers the plug-in the first time it is asked."""
    if "HEIF" in Image.OPEN:
        return True
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def webp_size(data: bytes) -> tuple[int, int]:
    """Canvas width and height of a WebP, in pixels, by its container specification (RFC 9649, sections 2.5 to 2.7)."""
    try:
        match data[12:16]:
            case b"VP8X":
                return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
            case b"VP8L":
                (bits,) = struct.unpack_from("<I", data, 21)
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            case b"VP8 ":
                width, height = struct.unpack_from("<HH", data, 26)
                return width & 0x3FFF, height & 0x3FFF
    except struct.error:
        pass
    raise UndecodableImage("the WebP header is broken")


class _BoundedFile(io.BytesIO):
    """A file that may be read in so many steps: Pillow spends microseconds of Python on each chunk or block."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise UndecodableImage("the file has too many parts")
        return super().read(size)


def open_file(data: bytes, format: str) -> io.BytesIO:
    """The file as Pillow is to read it; raises UndecodableImage where it takes too many steps."""
    return io.BytesIO(data) if format == "BMP" else _BoundedFile(data)  # run-length coded BMPs are read run by run


class Lean(NamedTuple):
    """A file without its metadata, and what that told: EXIF's orientation (0: not looked for) and a JPEG's scans."""

    data: bytes
    orientation: int = 0
    scans: int = 1


def _lean_jpeg(data: bytes) -> Lean:
    """Without EXIF, colour profiles, further pictures and comments, where they are large.

    JFIF and Adobe segments stay: they say how to read colours. A picture in several scans is told as libjpeg tells it.
    """
    kept, position, dropped, orientation = [], 0, 0, 1
    components, progressive, scans = 0, False, 0
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDA:
            scans += 1
            if not progressive and data[start + 4] >= components:
                break
        elif marker in _JPEG_FRAMES:
            components, progressive = data[start + 9], marker & 3 == 2
        elif scans == 0 and (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            if marker == 0xE1 and orientation == 1 and data[start + 4 : start + 10] == b"Exif\0\0":
                orientation = exif_orientation(data[start + 10 : end])
            kept.append((position, start))
            dropped += end - start
            position = end
    if scans > _MAX_SCANS:
        raise UndecodableImage("the JPEG has too many scans")
    if dropped > _MAX_METADATA:
        data = b"".join((*(data[start:end] for start, end in kept), data[position:]))
    return Lean(data, orientation, scans)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of the first picture; coded pixels lie between (ITU-T T.81, annex B)."""
    end = 2
    for _ in range(_MAX_PARTS):
        match = _JPEG_MARKER.search(data, end)
        if match is None or match[1] == b"\xd9":
            return
        end = match.end() + max(2, int.from_bytes(data[match.end() : match.end() + 2], "big"))
        yield match[1][0], match.start(), end
    raise UndecodableImage("the JPEG has too many segments")


def _lean_tiff(data: bytes) -> Lean:
    """With a directory of its own at the end, which holds nothing but what the pixels of the first page need."""
    _silence_libtiff()
    order, big, entries = _directory(data)
    kept: dict[int, bytes] = {}
    for tag, kind, count, value in entries:
        if tag in _TIFF_TAGS and tag not in kept:
            if count > _MAX_STRIPS:
                raise UndecodableImage("the TIFF has too many strips or tiles")
            kept[tag] = struct.pack(order + _TIFF_ENTRY[big], tag, kind, count, value)
    padding = bytes(len(data) % 2)
    pointer, number = ("Q", "Q") if big else ("L", "H")
    head = (data[: 8 if big else 4], struct.pack(order + pointer, len(data) + len(padding)))
    tail = (padding, struct.pack(order + number, len(kept)), *kept.values(), struct.pack(order + pointer, 0))
    return Lean(b"".join((*head, memoryview(data)[16 if big else 8 :], *tail)), exif_orientation(data))


@functools.cache
def _silence_libtiff() -> None:
    """It writes a line to stderr for each row of a fax it cannot read: 6 GB for a file of 2 MB and 50 million rows."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _directory(data: bytes) -> tuple[str, bool, list[tuple[int, int, int, bytes]]]:
    """Byte order, whether it is a BigTIFF, and (tag, type, count, value) of the first directory of TIFF or EXIF."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if count > _MAX_PARTS:
        raise UndecodableImage("the TIFF has too many tags")
    start += 8 if big else 2
    entry = struct.Struct(order + _TIFF_ENTRY[big])
    whole = data[start : start + count * entry.size]
    return order, big, list(entry.iter_unpack(whole[: len(whole) // entry.size * entry.size]))


def exif_orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block or a TIFF, 1 where there is none."""
    try:
        order, _, entries = _directory(exif.removeprefix(b"Exif\0\0"))
        for tag, kind, count, value in entries:
            if tag == _ORIENTATION_TAG and kind in _TIFF_INTEGERS and count == 1:
                return int(struct.unpack_from(order + _TIFF_INTEGERS[kind], value)[0])
    except (KeyError, struct.error, UndecodableImage):  # a broken EXIF block says nothing about the picture
        pass
    return 1


def _lean_avif(data: bytes) -> Lean:
    """With its EXIF items hidden: Pillow would parse and write them anew, but an AVIF is turned by irot and imir."""
    parts, position = [], 0
    for _ in range(_MAX_PARTS):
        size = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        end = position + size if size >= 8 else len(data)
        box = data[position:end]
        parts.append(box.replace(b"Exif", b"skip") if kind in (b"meta", b"moov") else box)
        if end >= len(data):
            return Lean(b"".join(parts))
        position = end
    raise UndecodableImage("the AVIF has too many boxes")


def lean(data: bytes, format: str) -> Lean:
    """The file without its costly metadata. Raises UndecodableImage, and struct's errors on what is no such file."""
    strip = {"JPEG": _lean_jpeg, "TIFF": _lean_tiff, "AVIF": _lean_avif}.get(format, Lean)
    return strip(data)
