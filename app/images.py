"""Bytes to a uint8 RGB crop. Runs on whichever thread decodes, never on the event loop; every Pillow error ends here.

The crop is the one torchvision's classification preset takes (``torchvision.transforms._presets``): the shorter
edge resized, the centre cropped. Only the crop is ever resized, so that a 10000x2 picture costs no more memory than
any other. Pillow sees little metadata: a file of 20 MiB can hold millions of segments or EXIF rationals, each of which
costs it microseconds of Python before the first pixel. One answer for each oddity:

- EXIF orientation is applied (not that of XMP); animations and multi-page files give their first frame;
- transparency (alpha channel, palette or tRNS) is laid on white;
- 16-bit grey is cut to its high byte, 32-bit integer grey is read as 16-bit, floating-point grey as 0..255;
- CMYK, YCbCr and LAB are converted to RGB by Pillow, without colour management.
"""

import contextlib
import ctypes
import functools
import io
import math
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging

from app.errors import TooManyPixels, UndecodableImage, UnsupportedMediaType

Crop = npt.NDArray[np.uint8]

# Seconds of one core that a pixel and a byte of the file cost, fitted to flat colour, photographs and noise of 8.6
# million pixels in every mode (alpha, palette, 16-bit), on one core of a 2025 server
_SECONDS = {
    "JPEG": (4.5e-9, 7e-9),
    "PNG": (10e-9, 11e-9),
    "WEBP": (15e-9, 25e-9),
    "AVIF": (12e-9, 62e-9),
    "HEIF": (14e-9, 88e-9),
    "GIF": (6e-9, 6e-9),
    "TIFF": (7e-9, 2e-9),
    "BMP": (5e-9, 0.0),
}
_SECONDS_PER_PIXEL_AND_SCAN = 0.3e-9  # a progressive JPEG is scanned whole, at any scale
_SECONDS_PER_BYTE_PROGRESSIVE = 26e-9
_SECONDS_PER_BYTE_LOSSLESS = 12e-9
_SECONDS_RUN_LENGTH = (50e-9, 250e-9)  # Pillow decodes run-length coded BMPs in Python

# libavif decodes what the stream holds and scales it to what the header announces; it gives up above 16384x16384
_AVIF_PIXELS = 16384 * 16384 // 2  # half, since it takes no more than half the bytes for each that the worst takes

_MAX_PARTS = 65_535  # segments of a JPEG, tags of a TIFF, boxes of an AVIF
_MAX_STRIPS = 20_000  # or tiles of a TIFF
_MAX_READS = 100_000  # two or three for each chunk of a PNG, two for each block of a GIF
_MAX_METADATA = 65_536  # bytes of a JPEG; to copy the file without less than this costs more than to parse it
_MAX_SCANS = 200  # encoders write about 10; a scan of 80 bytes goes over every pixel

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # but those without a segment: TEM, RSTn, SOI

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_TIFF_INTEGERS = {3: "H", 4: "L"}
_TIFF_ENTRY = ("HHL4s", "HHQ8s")  # TIFF 6.0, BigTIFF
# What describes pixels (TIFF 6.0): size, bits, colours, compression (CCITT, predictor, JPEG), strips, tiles, alpha
_TIFF_TAGS = frozenset({256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325})
_TIFF_TAGS |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}
_ORIENTATION_TAG = 0x0112
_RESAMPLING = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}  # and its radius
# EXIF orientation -> how Pillow turns the stored picture upright (the inverse pairs are spelled out in EXIF 2.3, 4.6.4)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_AXES = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model expects: resize the shorter edge to ``resize``, crop ``crop`` x ``crop``, scale by mean and std.

    ``mean`` and ``std`` are for values in 0..1. ``resize >= crop``, as in every torchvision preset.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Header:
    """A picture judged by its first bytes; nothing is decoded yet.

    ``data`` is the file without metadata that costs more than it is worth; ``width`` and ``height`` are as stored, in
    pixels; ``progressive`` is a JPEG in several scans, which is held whole while it is decoded; ``orientation`` is
    EXIF's, or 0 where only the opened file tells.
    """

    data: bytes
    format: str
    width: int
    height: int
    progressive: bool = False
    scans: int = 1
    orientation: int = 0

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(data: bytes, max_pixels: int) -> Header:
    """Judge format and size of an image file without decoding it.

    Raises UnsupportedMediaType, TooManyPixels or UndecodableImage.
    """
    format = sniff(data)
    if format is None:
        raise UnsupportedMediaType("the bytes are no JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or (where installed) HEIC")
    if format == "WEBP":  # Pillow allocates the whole canvas when it opens one
        width, height = _webp_size(data)
        header = Header(data, format, width, height)
    else:
        with _pillow_errors():
            lean = _LEAN.get(format, _Lean)(data)
            with Image.open(_file(lean.data, format), formats=[format]) as image:
                progressive = lean.scans > 1 or "progressive" in image.info
                header = Header(lean.data, format, *image.size, progressive, lean.scans, lean.orientation)
    if header.pixels > max_pixels:
        raise TooManyPixels(f"{header.width}x{header.height} pixels; at most {max_pixels} are decoded")
    return header


def decode_seconds(header: Header, preprocessing: Preprocessing, fast: bool) -> float:
    """Predicted seconds of one core to turn the file into a crop, from format and pixels."""
    per_pixel, per_byte = _SECONDS[header.format]
    if header.format == "JPEG":
        if fast:
            per_pixel /= _jpeg_scale(header.width, header.height, preprocessing)
        if header.progressive:
            per_pixel += header.scans * _SECONDS_PER_PIXEL_AND_SCAN
            per_byte = _SECONDS_PER_BYTE_PROGRESSIVE
    if header.format == "WEBP" and header.data[12:16] == b"VP8L":
        per_byte = _SECONDS_PER_BYTE_LOSSLESS
    if header.format == "BMP" and header.data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        per_pixel, per_byte = _SECONDS_RUN_LENGTH
    return header.pixels * per_pixel + len(header.data) * per_byte


def pixels_at_most(header: Header) -> int:
    """Pixels that decoding may have to hold. That is what the header says, but for AVIF, whose header binds nobody."""
    return max(header.pixels, _AVIF_PIXELS) if header.format == "AVIF" else header.pixels


def decode(header: Header, preprocessing: Preprocessing, fast: bool) -> Crop:
    """Decode, turn upright, resize and crop.

    Returns uint8 RGB of shape [crop, crop, 3]. With ``fast`` a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size,
    never below twice the size resized to. Raises UndecodableImage.
    """
    with _pillow_errors(), Image.open(_file(header.data, header.format), formats=[header.format]) as image:
        scale = 1
        if fast and header.format == "JPEG":
            scale = _jpeg_scale(*image.size, preprocessing)
        return _crop(image, header.orientation, scale, preprocessing)


def _crop(image: Image.Image, orientation: int, scale: int, preprocessing: Preprocessing) -> Crop:
    width, height = image.size
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))
    image.load()  # before its EXIF is asked for: that of a PNG may stand at its end
    turn = _UPRIGHT.get(orientation or _orientation(image.info.get("exif") or b""))
    box = _stored_box(width, height, turn, preprocessing)
    if scale > 1:
        box = (box[0] / scale, box[1] / scale, min(box[2] / scale, image.width), min(box[3] / scale, image.height))
    upright = _resized(_plain(image), box, turn in _SWAPS_AXES, preprocessing)
    if turn is not None:
        upright = upright.transpose(turn)
    return _on_white(upright)


def _stored_box(
    width: int, height: int, turn: Image.Transpose | None, preprocessing: Preprocessing
) -> tuple[float, float, float, float]:
    """The box of the stored picture that becomes the crop: torchvision's geometry, worked out upright."""
    swapped = turn in _SWAPS_AXES
    if swapped:
        width, height = height, width
    short, long = sorted((width, height))
    long_resized = preprocessing.resize * long // short
    resized_w, resized_h = (
        (preprocessing.resize, long_resized) if width <= height else (long_resized, preprocessing.resize)
    )
    left = round((resized_w - preprocessing.crop) / 2)
    top = round((resized_h - preprocessing.crop) / 2)
    x0, x1 = left * width / resized_w, (left + preprocessing.crop) * width / resized_w
    y0, y1 = top * height / resized_h, (top + preprocessing.crop) * height / resized_h
    if swapped:  # back to the axes of the stored picture
        width, height = height, width
        x0, y0, x1, y1 = y0, x0, y1, x1
    if turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90):
        x0, x1 = width - x1, width - x0
    if turn in (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270):
        y0, y1 = height - y1, height - y0
    if turn is Image.Transpose.TRANSVERSE:
        x0, x1, y0, y1 = width - x1, width - x0, height - y1, height - y0
    return max(0.0, x0), max(0.0, y0), min(x1, width), min(y1, height)


def _resized(
    image: Image.Image, box: tuple[float, float, float, float], swapped: bool, preprocessing: Preprocessing
) -> Image.Image:
    """The box as a square, its upright rows resized before its upright columns, as in a picture resized whole.

    Left alone, Pillow 13 chooses the order by the sizes: bicubic overshoots are clipped in between, so that it shows.
    """
    resample, support = _RESAMPLING[preprocessing.interpolation]
    size = preprocessing.crop
    x0, y0, x1, y1 = box
    if swapped:
        left, right = _reach(x0, x1, size, image.width, support)
        columns = image.resize((right - left, size), resample, (left, y0, right, y1))
        return columns.resize((size, size), resample, (x0 - left, 0, x1 - left, size))
    top, bottom = _reach(y0, y1, size, image.height, support)
    rows = image.resize((size, bottom - top), resample, (x0, top, x1, bottom))
    return rows.resize((size, size), resample, (0, y0 - top, size, y1 - top))


def _reach(start: float, end: float, size: int, length: int, support: int) -> tuple[int, int]:
    """The pixels that count when ``start`` to ``end`` become ``size`` pixels; all of them unless that is wasteful."""
    if length < 2 * (end - start):
        return 0, length
    margin = support * max(1.0, (end - start) / size) + 1
    return max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))


def _jpeg_scale(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Largest of libjpeg's scales that leaves the shorter edge at twice the size resized to, or more."""
    for scale in (8, 4, 2):
        if min(width, height) >= 2 * preprocessing.resize * scale:
            return scale
    return 1


def _plain(image: Image.Image) -> Image.Image:
    """One of L, RGB or RGBa (premultiplied), which Pillow resizes channel by channel."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        return image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "F":
        return image.convert("L")
    if image.has_transparency_data:
        return (image if image.mode == "RGBA" else image.convert("RGBA")).convert("RGBa")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _on_white(image: Image.Image) -> Crop:
    if image.mode == "RGBa":
        pixels = np.asarray(image).astype(np.uint16)
        crop: Crop = np.minimum(pixels[..., :3] + (255 - pixels[..., 3:]), 255).astype(np.uint8)
        return crop
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


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


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas width and height by the WebP container specification (RFC 9649, sections 2.5 to 2.7)."""
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


class _File(io.BytesIO):
    """A file that may be read in so many steps: Pillow spends microseconds of Python on each chunk or block."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise UndecodableImage("the file has too many parts")
        return super().read(size)


def _file(data: bytes, format: str) -> io.BytesIO:
    return io.BytesIO(data) if format == "BMP" else _File(data)  # run-length coded BMPs are read run by run


class _Lean(NamedTuple):
    """A file without its metadata, and what is worth knowing of that."""

    data: bytes
    orientation: int = 0
    scans: int = 1


def _lean_jpeg(data: bytes) -> _Lean:
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
                orientation = _orientation(data[start + 10 : end])
            kept.append((position, start))
            dropped += end - start
            position = end
    if scans > _MAX_SCANS:
        raise UndecodableImage("the JPEG has too many scans")
    if dropped > _MAX_METADATA:
        data = b"".join((*(data[start:end] for start, end in kept), data[position:]))
    return _Lean(data, orientation, scans)


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


def _lean_tiff(data: bytes) -> _Lean:
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
    return _Lean(b"".join((*head, memoryview(data)[16 if big else 8 :], *tail)), _orientation(data))


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


def _orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block or a TIFF, 1 where there is none."""
    try:
        order, _, entries = _directory(exif.removeprefix(b"Exif\0\0"))
        for tag, kind, count, value in entries:
            if tag == _ORIENTATION_TAG and kind in _TIFF_INTEGERS and count == 1:
                return int(struct.unpack_from(order + _TIFF_INTEGERS[kind], value)[0])
    except (KeyError, struct.error, UndecodableImage):  # a broken EXIF block says nothing about the picture
        pass
    return 1


def _lean_avif(data: bytes) -> _Lean:
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
            return _Lean(b"".join(parts))
        position = end
    raise UndecodableImage("the AVIF has too many boxes")


_LEAN = {"JPEG": _lean_jpeg, "TIFF": _lean_tiff, "AVIF": _lean_avif}


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Whatever Pillow or a codec raises on hostile bytes becomes one of ours; what it warns of is nobody's business.

    Python remembers every text it has shown as a warning, and these hold numbers that the client chooses.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels("the header announces more pixels than are decoded") from error
    except UndecodableImage:
        raise
    except Exception as error:
        raise UndecodableImage("the image is truncated or corrupt") from error
