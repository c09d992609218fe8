"""Hostile picture files, built byte by byte, by name in ``PICTURES``. Every generator is pure and returns a whole file.

Most are small files that cost a decoder much time or memory. Real ones have at most a few MiB.
"""

import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from tests.attacks import jpegs

_MIB = 2**20
_CHUNK = 2**20 - 16  # of unpacked metadata: Pillow refuses a chunk of more than a MiB


@functools.cache
def deflated_zeros(count: int) -> bytes:
    """A zlib stream of so many zeros. It is written from a repeated block, so that a GiB takes no time."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = packer.compress(bytes(count % _MIB)) + packer.flush()
    whole = count // _MIB
    checksum = struct.pack(">I", (count % 65521) << 16 | 1)
    return (head + block * (whole - 1) if whole else head[:2]) + tail[:-4] + checksum


# TIFF 6.0


def tiff(tags: dict[int, int | tuple[int, ...]], data: bytes) -> bytes:
    """A little-endian TIFF of one directory of LONGs. The data starts at byte 8."""
    values = {tag: value if isinstance(value, tuple) else (value,) for tag, value in tags.items()}
    padded = data + bytes(len(data) % 2)
    arrays, entries = b"", b""
    for tag, value in sorted(values.items()):
        place = value[0] if len(value) == 1 else 8 + len(padded) + len(arrays)
        arrays += b"" if len(value) == 1 else struct.pack(f"<{len(value)}I", *value)
        entries += struct.pack("<HHII", tag, 4, len(value), place)
    start = 8 + len(padded) + len(arrays)
    return b"II*\0" + struct.pack("<I", start) + padded + arrays + struct.pack("<H", len(values)) + entries + bytes(4)


def _grey(width: int, height: int, compression: int, bits: int = 8) -> dict[int, int | tuple[int, ...]]:
    return {256: width, 257: height, 258: bits, 259: compression, 262: 1, 277: 1}


def tiff_tile(edge: int, bits: int = 8, most_bytes: int | None = None, width: int = 8, height: int = 8) -> bytes:
    """8x8 pixels inside one huge tile of zeros. ``most_bytes`` cuts the compressed data short."""
    data = deflated_zeros(edge * ((edge * bits + 7) // 8))[:most_bytes]
    return tiff(_grey(width, height, 8, bits) | {322: edge, 323: edge, 324: 8, 325: len(data)}, data)


def tiff_lying_tile(edge: int = 46000) -> bytes:
    """The tile's data ends after 300 KB; libtiff fills the rest of the tile with zeros."""
    return tiff_tile(edge, most_bytes=300_000)


def tiff_wide_tile() -> bytes:
    """A tile as high as the picture, and 100 million pixels wide."""
    data = deflated_zeros(100_000_000 * 16)[:300_000]
    return tiff(_grey(8, 16, 8) | {322: 100_000_000, 323: 16, 324: 8, 325: len(data)}, data)


def tiff_strip() -> bytes:
    """Six million pixels wide, eight high, in a strip of 4 billion rows."""
    data = deflated_zeros(6_000_000 * 8)
    return tiff(_grey(6_000_000, 8, 8) | {273: 8, 278: 0xFFFFFFFF, 279: len(data)}, data)


def tiff_old_strip() -> bytes:
    """8x8 pixels of 60 000 samples of 16 bits."""
    data = deflated_zeros(64 * 2 * 60_000)
    return tiff(_grey(8, 8, 8, 16) | {277: 60_000, 273: 8, 278: 8, 279: len(data)}, data)


def tiff_jpeg(stream: bytes, width: int, height: int, *, colour: bool = True) -> bytes:
    """A JPEG as the only strip (compression 7, TIFF technical note 2)."""
    kind: dict[int, int | tuple[int, ...]] = {262: 2, 277: 3, 258: (8, 8, 8)} if colour else {}
    return tiff(_grey(width, height, 7) | kind | {273: 8, 278: height, 279: len(stream)}, stream)


def tiff_arithmetic() -> bytes:
    """Its strip is a progressive arithmetic-coded JPEG of 97 scans: libtiff gives up at 100."""
    return tiff_jpeg(jpegs.arithmetic_progressive(97, 2400, 2000), 2400, 2000)


def tiff_arithmetic_strips() -> bytes:
    """97 strips, each of which is a sequential arithmetic-coded JPEG."""
    stream = jpegs.arithmetic(4000, 64)
    count, rows = 97, 64
    tags = _grey(4000, count * rows, 7) | {262: 2, 277: 3, 258: (8, 8, 8), 278: rows}
    offsets = tuple(8 + at * len(stream) for at in range(count))
    return tiff(tags | {273: offsets, 279: (len(stream),) * count}, stream * count)


def tiff_progressive() -> bytes:
    return tiff_jpeg(jpegs.jpeg(jpegs.frame(jpegs.PROGRESSIVE, 2400, 2000), *[jpegs.scan(last=0)] * 97), 2400, 2000)


# PNG, third edition


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", behind: bytes = b"", width: int = 64, height: int = 64) -> bytes:
    """A grey PNG of zeros with chunks before and behind its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", deflated_zeros((width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + behind + png_chunk(b"IEND", b"")


def iccp() -> bytes:
    """A chunk of a KiB that unpacks to a MiB, as do the next two."""
    return png_chunk(b"iCCP", b"x\0\0" + deflated_zeros(_CHUNK))


def ztxt() -> bytes:
    return png_chunk(b"zTXt", b"Comment\0\0" + deflated_zeros(_CHUNK))


def itxt() -> bytes:
    return png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + deflated_zeros(_CHUNK))


def png_frames(count: int = 30_000) -> bytes:
    """Frame controls of an animation that has no frames, before the pixels."""
    control = struct.pack(">IIIIIHHBB", 0, 64, 64, 0, 0, 1, 1, 0, 0)
    return png(png_chunk(b"acTL", struct.pack(">II", count, 0)) + png_chunk(b"fcTL", control) * count)


def png_pixel_chunks(count: int = 30_000) -> bytes:
    """The pixels end early, and empty IDAT chunks follow."""
    return png(behind=png_chunk(b"IDAT", b"") * count)


# WebP: RFC 9649. Bits are written from the lowest of each byte.


class _Bits:
    """A bit stream; ``put`` appends the lowest bits of a value, lowest first."""

    def __init__(self) -> None:
        self.value = self.length = 0

    def put(self, value: int, count: int) -> "_Bits":
        self.value |= value << self.length
        self.length += count
        return self

    def whole(self) -> bytes:
        return self.value.to_bytes((self.length + 7) // 8 + 1, "little")


def _one_symbol() -> tuple[int, int]:
    """A simple prefix code of the one symbol 0, and its bits (RFC 9649, 3.7.2.1.1)."""
    return 0b0001, 4


def huffman_groups(edge: int = 1024) -> bytes:
    """A VP8L image without its header: one group of prefix codes for every 4x4 pixels, all of them distinct.

    libwebp gives each group tables of about 5 KiB, and there may be 65 536 of them.
    """
    groups = (edge // 4) ** 2
    bits = _Bits().put(0, 1)  # no transform
    bits.put(0, 1)  # no colour cache
    bits.put(1, 1).put(0, 3)  # several groups, for blocks of 4x4
    bits.put(0, 1)  # the entropy image has no colour cache
    for _ in range(2):  # green and red: 256 symbols of eight bits each, said by a code of the one length 8
        bits.put(0, 1).put(12 - 4, 4).put(0, 3 * 11).put(1, 3)
        bits.put(1, 1).put(3, 3).put(256 - 2, 8)
    for _ in range(3):  # blue, alpha, distance
        bits.put(*_one_symbol())
    numbers = b"".join(bytes((group & 255, group >> 8)) for group in range(groups))
    bits.put(int.from_bytes(numbers, "little"), 16 * groups)
    codes = groups * 5
    bits.put(int.from_bytes(b"\x11" * ((codes + 1) // 2), "little") & ((1 << 4 * codes) - 1), 4 * codes)
    return bits.whole()


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for k, d in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_groups(edge: int = 1024) -> bytes:
    header = b"\x2f" + struct.pack("<I", (edge - 1) | (edge - 1) << 14)
    return riff((b"VP8L", header + huffman_groups(edge)))


def webp_alpha_groups(edge: int = 1024) -> bytes:
    """A lossy WebP whose alpha plane is such an image (RFC 9649, 2.7.1.2)."""
    lossy = _encoded(Image.new("RGB", (edge, edge)), "WEBP", quality=0, method=0)
    size = (edge - 1).to_bytes(3, "little")
    return riff((b"VP8X", b"\x10\0\0\0" + size * 2), (b"ALPH", b"\1" + huffman_groups(edge)), (b"VP8 ", lossy[20:]))


def webp_flat(edge: int = 7000) -> bytes:
    """A lossless picture of one colour: every pixel takes no bit."""
    header = b"\x2f" + struct.pack("<I", (edge - 1) | (edge - 1) << 14)
    bits = _Bits().put(0, 3)
    for _ in range(5):
        bits.put(*_one_symbol())
    return riff((b"VP8L", header + bits.whole() + bytes(8)))


# GIF, BMP, AVIF and HEIC


def gif(screen: int, frame: int, extension: bytes = b"") -> bytes:
    """A GIF of one black frame; both are squares, with edges of so many pixels."""
    data = bytearray(_encoded(Image.new("P", (frame, frame)), "GIF"))
    data[6:10] = struct.pack("<HH", screen, screen)
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)  # behind the screen's colours
    return bytes(data[:start] + extension + data[start:])


def gif_comment(blocks: int = 100_000) -> bytes:
    return gif(8, 8, b"!\xfe" + b"\1a" * blocks + b"\0")


def bmp(width: int, height: int, data: bytes) -> bytes:
    """A BMP of eight bits a pixel, run-length coded."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 2, 0)
    start = 14 + len(header) + 8
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + bytes(8) + data


def bmp_runs(width: int = 20_000, height: int = 2_000) -> bytes:
    """A whole picture in runs of 255 pixels."""
    runs, rest = divmod(width, 255)
    return bmp(width, height, (b"\xff\0" * runs + bytes([rest, 0]) + b"\0\0") * height + b"\0\1")


def bmp_single_pixels(pixels: int = 1_000_000) -> bytes:
    """Runs of a single pixel, which are the most steps for a byte."""
    return bmp(1000, pixels // 1000, b"\1\0" * pixels + b"\0\1")


def avif_lie(shown: int = 64, real: int = 6000) -> bytes:
    """An AVIF whose ``ispe`` property announces a small picture and whose stream holds a large one."""
    return _lie(Image.new("RGB", (real, real)), "AVIF", shown, quality=1, speed=10)


def heic_lie(shown: int = 64, real: int = 4096) -> bytes:
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return _lie(Image.new("RGB", (real, real)), "HEIF", shown, quality=1)


def _lie(image: Image.Image, format: str, shown: int, **options: Any) -> bytes:
    data = _encoded(image, format, **options)
    size = struct.pack(">II", *image.size)
    assert size in data, "no ispe property of this size"
    return data.replace(size, struct.pack(">II", shown, shown))


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "TIFF 8x8 in a tile of 32000x32000": lambda: tiff_tile(32000),
    "TIFF 8x8 in a tile of 32000x32000, cut at 150 KB": lambda: tiff_tile(32000, most_bytes=150_000),
    "TIFF 8x8 in a tile of 46000x46000, cut at 300 KB": tiff_lying_tile,
    "TIFF 8x8 in a tile of 46000x46000, 1 bit": lambda: tiff_tile(46000, bits=1),
    "TIFF 8x16 in a tile 100 million wide": tiff_wide_tile,
    "TIFF strip of 4 billion rows": tiff_strip,
    "TIFF of 60000 samples": tiff_old_strip,
    "TIFF of a progressive arithmetic JPEG of 97 scans": tiff_arithmetic,
    "TIFF of 97 arithmetic JPEG strips": tiff_arithmetic_strips,
    "TIFF of a progressive JPEG of 97 scans": tiff_progressive,
    "PNG with 100 iCCP": lambda: png(iccp() * 100),
    "PNG with 1000 iCCP": lambda: png(iccp() * 1000),
    "PNG with 4600 iCCP": lambda: png(iccp() * 4600),
    "PNG with 1000 iCCP behind its pixels": lambda: png(behind=iccp() * 1000),
    "PNG with 60 zTXt": lambda: png(ztxt() * 60),
    "PNG with 60 zTXt behind its pixels": lambda: png(behind=ztxt() * 60),
    "PNG with 60 iTXt": lambda: png(itxt() * 60),
    "PNG with 60 iTXt behind its pixels": lambda: png(behind=itxt() * 60),
    "PNG with 30000 fcTL": png_frames,
    "PNG with 30000 empty IDAT": png_pixel_chunks,
    "WebP of 65536 Huffman groups": webp_groups,
    "WebP with alpha of 65536 Huffman groups": webp_alpha_groups,
    "WebP lossless 7000x7000 of one colour": webp_flat,
    "GIF screen of 7000x7000, frame of 8x8": lambda: gif(7000, 8),
    "GIF screen of 8x8, frame of 7000x7000": lambda: gif(8, 7000),
    "GIF with a comment of 100000 blocks": gif_comment,
    "BMP run-length coded, 20000x2000, empty": lambda: bmp(20_000, 2_000, b"\0\1"),
    "BMP run-length coded, 20000x2000": bmp_runs,
    "BMP run-length coded, a million runs": bmp_single_pixels,
    "AVIF of 6000x6000 that says 64x64": avif_lie,
    "HEIC of 4096x4096 that says 64x64": heic_lie,
} | jpegs.JPEGS
"""Name to generator. What a picture costs, and how it is answered, is up to those who use it."""
