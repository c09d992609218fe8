"""Files that are nearly images: a seed of every kind that is decoded, ways to change it, what must come of it."""

import functools
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageCms

from app import images
from app.errors import BadImage
from app.images import decoder as decoding
from app.images.sandbox import Sandbox
from tests import hostile

MAX_PIXELS = 2_000_000
PREPROCESSING = images.Preprocessing(256, 224, "bicubic", (0.5,) * 3, (0.5,) * 3)
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\1\0WEBP", b"BM", b"II*\0", b"MM\0+")
_MAGICS += (b"\0\0\0\x20ftypavif", b"\0\0\0\x20ftypheic")
_HEAD = 256  # bytes at a file's start where most headers are


@functools.cache
def decoder(fast: bool) -> decoding.Decoder:
    return decoding.Decoder(PREPROCESSING, MAX_PIXELS, None, fast, Sandbox())


def judge(data: bytes) -> str:
    """Decode the bytes in every way the service has: 'ok', or the code of the error that it answers.

    Anything else that is raised, and a crop of another shape or type, is a finding.
    """
    outcomes = {_outcome(decoder(fast), data) for fast in (True, False)}
    assert len(outcomes) == 1 or outcomes <= {"ok", "undecodable_image"}, outcomes  # libjpeg's scales forgive more
    return outcomes.pop()


def _outcome(decoder: decoding.Decoder, data: bytes) -> str:
    try:
        crop = decoder.decode_now(data)
    except BadImage as error:
        return error.code
    assert (crop.shape, crop.dtype.name) == ((224, 224, 3), "uint8")
    return "ok"


@functools.cache
def seeds() -> dict[str, bytes]:
    """A small whole file of every kind that is decoded, by name."""
    picture = hostile.picture
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    second = Image.new("RGB", (61, 47), "red")
    return {
        "jpeg": picture("JPEG", icc_profile=profile, exif=hostile.exif((0x0112, 3, 1, 6))),
        "jpeg-progressive": picture("JPEG", progressive=True),
        "jpeg-cmyk": picture("JPEG", mode="CMYK"),
        "jpeg-grey": picture("JPEG", mode="L"),
        "jpeg-large": picture("JPEG", size=(1100, 1030), quality=20),  # decoded at half its size
        "png": picture("PNG", icc_profile=profile),
        "png-alpha": picture("PNG", mode="RGBA"),
        "png-palette": picture("PNG", mode="P", transparency=3),
        "png-16-bit": picture("PNG", mode="I;16"),
        "png-interlaced": _interlaced_png(),
        "webp": picture("WEBP", exif=hostile.exif((0x0112, 3, 1, 8)), icc_profile=profile),
        "webp-lossless": picture("WEBP", mode="RGBA", lossless=True),
        "webp-animated": picture("WEBP", save_all=True, append_images=[second]),
        "gif": picture("GIF", mode="P", save_all=True, append_images=[second], transparency=0),
        "bmp": picture("BMP"),
        "bmp-run-length": _run_length_bmp(),
        "tiff": picture("TIFF"),
        "tiff-lzw": picture("TIFF", compression="tiff_lzw"),
        "tiff-jpeg": picture("TIFF", compression="jpeg"),
        "tiff-fax": picture("TIFF", mode="1", compression="group4"),
        "tiff-float": picture("TIFF", mode="F"),
        "avif": picture("AVIF", exif=hostile.exif((0x0112, 3, 1, 3))),
        "avif-animated": picture("AVIF", save_all=True, append_images=[second]),
    } | ({"heic": picture("HEIF")} if images.heif_installed() else {})


def _interlaced_png(size: int = 24) -> bytes:
    """In seven passes (PNG, 8.1), which Pillow does not write."""
    chance = random.Random(0)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [
        b"\0" + chance.randbytes(3 * len(range(x, size, dx))) for x, y, dx, dy in passes for _ in range(y, size, dy)
    ]
    return hostile.png(size, size, hostile.png_chunk(b"IDAT", zlib.compress(b"".join(rows))), interlace=1)


def _run_length_bmp(size: int = 16) -> bytes:
    """In 8 bits with a palette, coded in runs, which Pillow does not write."""
    pixels = b"".join(bytes((size, row)) + b"\0\0" for row in range(size)) + b"\0\1"
    palette = random.Random(0).randbytes(1024)
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, size, size, 1, 8, 1, len(pixels), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + palette + pixels


def mutant(chance: random.Random, data: bytes | None = None) -> bytes:
    """These bytes, or one of the seeds, changed in one to three ways."""
    if data is None:
        data = seeds()[chance.choice(sorted(seeds()))]
    for _ in range(chance.randint(1, 3)):
        data = chance.choice(_MUTATIONS)(chance, data)
    return data


def _place(chance: random.Random, data: bytes) -> int:
    """Half of the time where headers are."""
    return chance.randint(0, min(len(data), _HEAD) if chance.random() < 0.5 else len(data))


def _truncated(chance: random.Random, data: bytes) -> bytes:
    return data[: _place(chance, data)]


def _spliced(chance: random.Random, data: bytes) -> bytes:
    other = seeds()[chance.choice(sorted(seeds()))]
    return data[: _place(chance, data)] + other[_place(chance, other) :]


def _overwritten(chance: random.Random, data: bytes) -> bytes:
    """Numbers that headers are wrong with, in either order and of 1, 2 or 4 bytes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        number, size = chance.choice((*_NUMBERS, chance.getrandbits(32))), chance.choice((1, 2, 4))
        place = _place(chance, data)
        changed[place : place + size] = (number % 256**size).to_bytes(size, chance.choice(("big", "little")))
    return bytes(changed)


def _flipped(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30)) if data else 0):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _repeated(chance: random.Random, data: bytes) -> bytes:
    start, end = sorted((_place(chance, data), _place(chance, data)))
    return data[:end] + data[start:end] * chance.choice((1, 2, 50)) + data[end:]


def _cut_out(chance: random.Random, data: bytes) -> bytes:
    start, end = sorted((_place(chance, data), _place(chance, data)))
    return data[:start] + data[end:]


def _with_metadata(chance: random.Random, data: bytes) -> bytes:
    """EXIF or a colour profile, both garbage, where the format has its place for them; else anywhere."""
    orientation = (0x0112, chance.choice((2, 3, 4, 5, 13)), chance.choice((0, 1, 2, 2**32 - 1)), chance.getrandbits(32))
    exif = hostile.exif(orientation, next_directory=chance.choice((0, 8, 2**32 - 1)))
    profile = chance.randbytes(chance.choice((0, 3, 128, 500)))
    if data.startswith(b"\xff\xd8"):
        segments = hostile.jpeg_segment(0xE1, exif) + hostile.jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + profile)
        return data[:2] + segments + data[2:]
    if data.startswith(b"\x89PNG"):
        chunks = hostile.png_chunk(b"eXIf", exif[6:]) + hostile.png_chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))
        return data[:33] + chunks + data[33:]
    if data[8:12] == b"WEBP":
        exif += bytes(len(exif) % 2)
        return data + b"EXIF" + struct.pack("<I", len(exif)) + exif
    place = _place(chance, data)
    return data[:place] + chance.choice((exif, profile)) + data[place:]


def _noise(chance: random.Random, data: bytes) -> bytes:
    return chance.choice((*_MAGICS, b"")) + chance.randbytes(chance.choice((0, 8, 64, 4096)))


_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _truncated,
    _spliced,
    _overwritten,
    _overwritten,
    _flipped,
    _repeated,
    _cut_out,
    _with_metadata,
    _noise,
)
