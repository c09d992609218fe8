"""Hostile image files, each with the outcomes that are acceptable: 'ok', or the code of an error of ``app.errors``.

All are small (the largest has a megabyte) and made here, with Pillow or by hand, the same every time.
"""

import functools
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from app import images

OK = frozenset({"ok"})
UNSUPPORTED = frozenset({"unsupported_media_type"})
UNDECODABLE = frozenset({"undecodable_image"})
TOO_MANY = frozenset({"too_many_pixels"})
ANY = OK | UNSUPPORTED | UNDECODABLE | TOO_MANY
HUGE = 7000  # 49 million pixels when squared: just below the default limit


@dataclass(frozen=True, slots=True)
class Case:
    """``codes``: the acceptable outcomes with the default limit of 50 million pixels."""

    name: str
    data: bytes
    codes: frozenset[str]


@functools.cache
def cases() -> list[Case]:
    """Every hostile file. The names are unique."""
    heic = [] if images.heif_installed() else ["HEIC"]
    whole = {name: data for name, data in _pictures().items() if name not in heic}
    return [
        *_truncated(whole),
        *_flipped(whole),
        *_no_image(),
        *_huge(),
        *_png(),
        *_jpeg(),
        *_tiff(),
        *_gif(),
        *_others(),
    ]


def picture(format: str, size: tuple[int, int] = (61, 47), mode: str = "RGB", **options: Any) -> bytes:
    """A gradient with a little noise, so that no format stores it in a few bytes."""
    noise = Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))
    image = Image.merge("RGB", [Image.linear_gradient("L").rotate(angle).resize(size) for angle in (0, 90, 180)])
    image = Image.blend(image, noise, 0.1)
    return encode(image.convert(mode), format, **options)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """A file in memory."""
    images.heif_installed()
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, color: int = 2, depth: int = 8, interlace: int = 0) -> bytes:
    """A PNG of these chunks between IHDR and IEND."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *chunks, png_chunk(b"IEND", b"")))


def tiff(*entries: tuple[int, int, int, int], rest: bytes = b"", next_directory: int = 0) -> bytes:
    """A little-endian TIFF of one directory: (tag, type, count, value or offset)."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + struct.pack("<I", next_directory) + rest


def exif(*entries: tuple[int, int, int, int], next_directory: int = 0) -> bytes:
    return b"Exif\0\0" + tiff(*entries, next_directory=next_directory)


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def _pictures() -> dict[str, bytes]:
    second = Image.new("RGB", (61, 47), "red")
    return {
        "JPEG": picture("JPEG"),
        "progressive JPEG": picture("JPEG", progressive=True),
        "PNG": picture("PNG"),
        "WebP": picture("WEBP"),
        "lossless WebP": picture("WEBP", lossless=True),
        "animated WebP": picture("WEBP", save_all=True, append_images=[second]),
        "GIF": picture("GIF", mode="P"),
        "TIFF": picture("TIFF"),
        "LZW TIFF": picture("TIFF", compression="tiff_lzw"),
        "deflate TIFF": picture("TIFF", compression="tiff_adobe_deflate"),
        "BMP": picture("BMP"),
        "AVIF": picture("AVIF"),
        "HEIC": picture("HEIF") if images.heif_installed() else b"",
    }


def _truncated(whole: dict[str, bytes]) -> Iterator[Case]:
    for name, data in whole.items():
        for tenths in range(1, 10):
            yield Case(f"{name} cut at {tenths}/10", data[: len(data) * tenths // 10], UNDECODABLE)


def _flipped(whole: dict[str, bytes]) -> Iterator[Case]:
    for name, data in whole.items():
        chance = random.Random(name)
        for number in range(30):
            flipped = bytearray(data)
            for _ in range(chance.choice((1, 3, 30))):
                flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            yield Case(f"{name} with flipped bits {number}", bytes(flipped), ANY)


def _no_image() -> Iterator[Case]:
    chance = random.Random(0)
    yield Case("256 random bytes", chance.randbytes(256), UNSUPPORTED)
    yield Case("64 KiB of random bytes", chance.randbytes(64 * 1024), UNSUPPORTED)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat.jpg", picture("JPEG"))
    yield Case("zip renamed to jpg", archive.getvalue(), UNSUPPORTED)
    yield Case("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>', UNSUPPORTED)
    yield Case("HTML", b"<!doctype html><title>404</title><p>Not found", UNSUPPORTED)
    yield Case("ICO", picture("ICO", (32, 32)), UNSUPPORTED)
    yield Case("PPM", picture("PPM"), UNSUPPORTED)
    yield Case("PSD", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(12), UNSUPPORTED)
    yield Case("PDF", b"%PDF-1.7\n", UNSUPPORTED)
    yield Case("MP4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", UNSUPPORTED)
    yield Case("one byte", b"\xff", UNSUPPORTED)


def _huge() -> Iterator[Case]:
    one_colour = Image.new("RGB", (HUGE, HUGE), (30, 90, 200))
    yield Case("WebP of 49 million pixels", encode(one_colour, "WEBP", lossless=True, quality=0, method=0), OK)
    yield Case("PNG of 49 million pixels", encode(one_colour, "PNG", compress_level=1), OK)
    yield Case("PNG header of 60000x60000", png(60000, 60000), TOO_MANY)
    bits = 9999 | 9999 << 14
    vp8l = b"VP8L" + struct.pack("<I", 18) + b"\x2f" + struct.pack("<I", bits) + bytes(13)
    yield Case("38-byte WebP of 10000x10000", b"RIFF" + struct.pack("<I", 30) + b"WEBP" + vp8l, TOO_MANY)
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    yield Case("WebP canvas of 16777216x16777216", b"RIFF" + struct.pack("<I", 22) + b"WEBP" + vp8x, TOO_MANY)
    start = picture("JPEG").index(b"\xff\xc0")
    jpeg = bytearray(picture("JPEG"))
    jpeg[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    yield Case("JPEG header of 65535x65535", bytes(jpeg), TOO_MANY)


def _png() -> Iterator[Case]:
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    bomb = zlib.compress(bytes(50_000_000))
    yield Case("PNG with a zlib bomb in iCCP", png(8, 8, png_chunk(b"iCCP", b"x\0\0" + bomb), pixels), OK)
    text = png_chunk(b"zTXt", b"Comment\0\0" + bomb)
    yield Case("PNG with a zlib bomb in zTXt", png(8, 8, text, pixels), OK)
    yield Case("PNG with a zlib bomb behind its pixels", png(8, 8, pixels, text), OK)
    yield Case("PNG with a zlib bomb for pixels", png(8, 8, png_chunk(b"IDAT", bomb)), OK)
    whole = picture("PNG")
    end_of_header = whole.index(b"IHDR") + 17
    yield Case(
        "PNG with a wrong CRC of its header", whole[:end_of_header] + b"oops" + whole[end_of_header + 4 :], UNDECODABLE
    )
    wrong = png_chunk(b"tEXt", b"Title\0cat")[:-4] + b"oops"
    yield Case("PNG with a wrong CRC of a text", png(8, 8, wrong, pixels), OK)
    yield Case("PNG without pixels", png(8, 8), UNDECODABLE)
    yield Case("PNG of no width", png(0, 8, pixels), UNDECODABLE)
    yield Case("PNG with 8000 unknown chunks", png(8, 8, png_chunk(b"abCd", b"") * 8000, pixels), OK)
    yield Case("PNG in too many chunks", png(8, 8, png_chunk(b"abCd", b"") * 70_000, pixels), UNDECODABLE)
    yield Case("PNG with a bit depth of 3", png(8, 8, pixels, depth=3), UNDECODABLE)
    indices = png_chunk(b"IDAT", zlib.compress(b"\0\5\5\5\5\5\5\5\5" * 8))
    yield Case("PNG with a palette index out of range", png(8, 8, png_chunk(b"PLTE", b"abc"), indices, color=3), OK)


def _jpeg() -> Iterator[Case]:
    whole = picture("JPEG")
    frame = whole.index(b"\xff\xc0")
    yield Case("JPEG of 0 components", whole[: frame + 9] + b"\0" + whole[frame + 10 :], UNDECODABLE)
    yield Case("JPEG of no height", whole[: frame + 5] + b"\0\0" + whole[frame + 7 :], UNDECODABLE)
    yield Case("JPEG magic alone", b"\xff\xd8\xff\xe0", UNDECODABLE)
    counts = exif((0x0112, 3, 0xFFFFFFFF, 6), (0x011A, 5, 0x7FFFFFFF, 8), (0x010F, 2, 0xFFFFFFF0, 0xFFFFFFF0))
    lies = {
        "with huge counts": counts,
        "that points at itself": exif((0x8769, 4, 1, 8), (0x0112, 3, 1, 6), next_directory=8),
        "outside itself": exif()[:10] + b"\xff\xff\xff\xff",
        "of an unknown orientation": exif((0x0112, 3, 1, 99)),
        "cut short": exif((0x0112, 3, 1, 6))[:12],
        "of no byte order": b"Exif\0\0??*\0",
    }
    for name, block in lies.items():
        yield Case(f"JPEG with EXIF {name}", whole[:2] + jpeg_segment(0xE1, block) + whole[2:], OK)
    long = b"".join(jpeg_segment(0xE1, b"Exif\0\0" + bytes(100)) for _ in range(1000))
    yield Case("JPEG with a thousand EXIF blocks", whole[:2] + long + whole[2:], OK)
    yield Case("JPEG with a broken multi-picture index", whole[:2] + jpeg_segment(0xE2, b"MPF\0II*\0") + whole[2:], OK)
    yield Case("JPEG in too many segments", whole[:2] + b"\xff\xfe\0\2" * 70_000 + whole[2:], UNDECODABLE)
    progressive = picture("JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield Case("JPEG of 500 scans", progressive[:-2] + last_scan * 500 + b"\xff\xd9", UNDECODABLE)
    yield Case("JPEG with another file behind it", whole + picture("PNG") + bytes(1000), OK)
    yield Case("JPEG with junk between its segments", whole[:20] + bytes(1000) + whole[20:], OK)


def _tiff() -> Iterator[Case]:
    grey = ((256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1))
    strip = (*grey, (273, 4, 1, 8), (278, 3, 1, 8), (279, 4, 1, 64))
    yield Case("TIFF", tiff(*strip), OK)
    yield Case("TIFF whose directory points at itself", tiff(*strip, next_directory=8), OK)
    yield Case("TIFF with a lying strip offset", tiff(*grey, (273, 4, 1, 0xFFFFFF00), (278, 3, 1, 8)), UNDECODABLE)
    yield Case("TIFF with a lying directory", b"II*\0\xff\xff\xff\x7f", UNDECODABLE)
    yield Case("TIFF with a lying tag", tiff((270, 2, 100_000, 0x7FFFFFFF), *strip), OK)
    strips = tiff(*grey, (273, 4, 21_000, 8), (278, 3, 1, 1), rest=bytes(84_000))
    yield Case("TIFF of too many strips", strips, UNDECODABLE)
    yield Case("TIFF of 4 billion strips", tiff(*grey, (273, 4, 0xFFFFFFFF, 8), (278, 3, 1, 1)), UNDECODABLE)
    tiles = ((322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 0xFFFFFFF, 8), (325, 4, 0xFFFFFFF, 8))
    yield Case("TIFF of 268 million tiles", tiff(*grey, *tiles), UNDECODABLE)
    wide = ((256, 4, 1, 0x7FFFFFFF), (257, 4, 1, 0x7FFFFFFF), *strip[2:])
    yield Case("TIFF of 2147483647x2147483647", tiff(*wide), TOO_MANY)
    yield Case("TIFF of 60000 samples", tiff(*grey[:-1], (277, 3, 1, 60_000), (273, 4, 1, 8)), UNDECODABLE)
    yield Case("TIFF without size", tiff(*strip[2:]), UNDECODABLE)
    yield Case("TIFF of no tags", tiff(), UNDECODABLE)
    yield Case("BigTIFF with a lying directory", b"II+\0\x08\0\0\0" + b"\xff" * 8, UNDECODABLE)
    yield Case("BigTIFF of 2^64 tags", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 8, UNDECODABLE)


def _gif() -> Iterator[Case]:
    colours = [Image.new("P", (20, 20), number % 256) for number in range(500)]
    yield Case("GIF of 500 frames", encode(colours[0], "GIF", save_all=True, append_images=colours[1:]), OK)
    whole = picture("GIF", mode="P")
    yield Case("GIF screen of 65535x65535", whole[:6] + b"\xff\xff\xff\xff" + whole[10:], TOO_MANY)
    yield Case("GIF frame larger than its screen", whole[:6] + b"\x05\0\x05\0" + whole[10:], OK)
    frame = whole.index(b",")
    yield Case("GIF frame of 65535x65535", whole[: frame + 5] + b"\xff\xff\xff\xff" + whole[frame + 9 :], TOO_MANY)
    yield Case("GIF without a frame", whole[:frame] + b";", UNDECODABLE)
    blocks = b"!\xfe" + b"\1a" * 120_000 + b"\0"
    yield Case("GIF in too many blocks", whole[:frame] + blocks + whole[frame:], UNDECODABLE)
    script = b"GIF89a/*" + whole[8:] + b"*/=1;alert(1)"
    yield Case("GIF that is a script", script, OK)


def _others() -> Iterator[Case]:
    whole = picture("BMP")
    for name, width, height, codes in (
        ("of negative width", -61, 47, UNDECODABLE | TOO_MANY),
        ("upside down", 61, -47, OK),
        ("of 2147483647x2147483647", 0x7FFFFFFF, 0x7FFFFFFF, TOO_MANY),
        ("of no width", 0, 47, UNDECODABLE),
    ):
        yield Case(f"BMP {name}", whole[:18] + struct.pack("<ii", width, height) + whole[26:], codes)
    yield Case("BMP magic alone", b"BM", UNDECODABLE)
    yield Case("WebP magic alone", b"RIFF\x04\0\0\0WEBP", UNDECODABLE)
    yield Case("AVIF type alone", b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", UNDECODABLE)
    heic = UNDECODABLE if images.heif_installed() else UNSUPPORTED
    yield Case("HEIC type alone", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", heic)
    size = struct.pack(">II", 61, 47)
    lying = picture("AVIF").replace(size, struct.pack(">II", 30, 20))
    yield Case("AVIF smaller than it is", lying, OK | UNDECODABLE)
    huge = picture("AVIF").replace(size, struct.pack(">II", 16_000, 16_000))
    yield Case("AVIF header of 16000x16000", huge, TOO_MANY)
    if images.heif_installed():
        size = struct.pack(">II", 64, 64)
        huge = picture("HEIF", (64, 64)).replace(size, struct.pack(">II", 60000, 60000))
        yield Case("HEIC header of 60000x60000", huge, TOO_MANY)
