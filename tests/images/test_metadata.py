"""Metadata does not decide about pixels, and alpha that writers do not mean is ignored."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from app import images
from app.errors import TooManyPixels
from app.images import containers
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from tests import hostile
from tests.hostile import encode, png_chunk
from tests.images.test_pillow import MAX_PIXELS, PRESET, assert_close, crop, heif, reference, sharp

PICTURE = sharp((301, 203))
PNG = encode(PICTURE, "PNG")
PROFILE = struct.pack(">I", 3_000_000) + bytes(8) + b"prtrRGB Lab " + bytes(12) + b"acsp" + bytes(2_999_960)
TEXT = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + b" " * 3_000_000
CHUNKS = {
    "ICC": png_chunk(b"iCCP", b"printer\0\0" + zlib.compress(PROFILE)),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TEXT)),
    "zTXt": png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(TEXT)),
    "iTXt": png_chunk(b"iTXt", b"Comment\0\0\0\0\0" + TEXT),
    "bomb": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000))),
}


def wrong(kind: bytes, data: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    return png_chunk(kind, data)[:-4] + b"oops"


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_large_metadata_of_a_png(chunk: bytes) -> None:
    for data in (PNG[:33] + chunk + PNG[33:], PNG[:-12] + chunk + PNG[-12:], PNG[:-12] + chunk[: len(chunk) // 2]):
        assert_close(crop(data), reference(PICTURE), 0)


@pytest.mark.parametrize("kind", [b"pHYs", b"gAMA", b"tEXt", b"iCCP", b"tRNS", b"eXIf", b"tIME", b"abCd"])
def test_wrong_checksum_of_an_ancillary_chunk(kind: bytes) -> None:
    contents = {b"tRNS": PNG[:6], b"eXIf": hostile.tiff((0x0112, 3, 1, 6))}
    chunk = wrong(kind, contents.get(kind, b"abcdefghi"))
    for data in (PNG[:33] + chunk + PNG[33:], PNG[:-12] + chunk + PNG[-12:]):
        assert_close(crop(data), reference(PICTURE), 0)


@pytest.mark.parametrize("content", [b"", b"\0", bytes(300)])
def test_transparency_of_the_wrong_length_is_ignored(content: bytes) -> None:
    assert_close(crop(PNG[:33] + png_chunk(b"tRNS", content) + PNG[33:]), reference(PICTURE), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "kind"),
    [
        *((format, "icc_profile") for format in ("WEBP", "AVIF", "JPEG", "TIFF")),
        *((format, "xmp") for format in ("WEBP", "AVIF")),
        *(pytest.param("HEIF", kind, marks=heif) for kind in ("icc_profile", "xmp")),
    ],
)
def test_large_metadata_of_other_formats(format: str, kind: str) -> None:
    options = {"quality": 90} if format != "TIFF" else {}
    data = encode(PICTURE, format, **options, **{kind: PROFILE if kind == "icc_profile" else TEXT})
    assert_close(crop(data), crop(encode(PICTURE, format, **options)), 0)


def test_large_metadata_of_a_gif() -> None:
    whole = encode(PICTURE, "GIF")
    frame = whole.index(b",", 13 + 3 * (2 << (whole[10] & 7)))  # behind the palette
    text = b"!\xff\x0bXMP DataXMP" + (b"\xff" + b"x" * 255) * 12_000 + b"\0"
    data = whole[:frame] + text + whole[frame:]
    assert images.read_header(data, MAX_PIXELS).data != data
    assert_close(crop(data), crop(whole), 0)


@pytest.mark.parametrize("lossless", [False, True])
def test_truncated_metadata_of_a_webp(lossless: bool) -> None:
    exif = hostile.exif((0x0112, 3, 1, 6))
    whole = encode(PICTURE, "WEBP", lossless=lossless, exif=exif)
    described = encode(PICTURE, "WEBP", lossless=lossless, exif=exif, xmp=TEXT, icc_profile=PROFILE)
    for data in (described, described[:-1000], described[:-2_000_000]):
        assert_close(crop(data), crop(whole), 0)


def bmp(header: int, compression: int, alpha: int, *, top_down: bool = False) -> bytes:
    """A BMP of 32 bits a pixel with a header of this size."""
    width, height = PICTURE.size
    pixels = np.dstack([np.asarray(PICTURE)[..., ::-1], np.full((height, width), alpha, np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack(
        "<IiiHHIIiiII", header, width, -height if top_down else height, 1, 32, compression, 0, 0, 0, 0, 0
    )
    info += (masks + bytes(68))[: header - 40] if header > 40 else masks[: {3: 12, 6: 16}.get(compression, 0)]
    start = 14 + len(info)
    rows = pixels if top_down else pixels[::-1]
    return b"BM" + struct.pack("<IHHI", start + pixels.size, 0, 0, start) + info + rows.tobytes()


@pytest.mark.parametrize("header", [40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("compression", [0, 3, 6], ids=["BI_RGB", "BI_BITFIELDS", "BI_ALPHABITFIELDS"])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("alpha", [0, 255])
def test_bmp_whose_alpha_is_0_everywhere_is_opaque(header: int, compression: int, top_down: bool, alpha: int) -> None:
    assert_close(crop(bmp(header, compression, alpha, top_down=top_down)), reference(PICTURE), 0)


def test_bmp_with_any_alpha_is_laid_on_white() -> None:
    data = bmp(124, 3, 128)
    assert crop(data).mean() > reference(PICTURE).mean() + 40


def test_transparent_png_stays_transparent() -> None:
    image = PICTURE.copy()
    image.putalpha(0)
    assert crop(encode(image, "PNG")).min() == 255


def large(pixels: int, *, progressive: bool = False) -> bytes:
    """A JPEG whose header states so many pixels, without their data."""
    height = -(-pixels // 16_000)
    whole = encode(Image.new("L", (64, 64)), "JPEG", progressive=progressive)
    frame = whole.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    return whole[: frame + 5] + struct.pack(">HH", height, 16_000) + whole[frame + 9 :]


def test_only_jpegs_of_a_single_scan_may_have_more_than_50_million_pixels() -> None:
    assert images.read_header(large(200_000_000), 200_000_000).pixels == 200_000_000
    with pytest.raises(TooManyPixels, match="more than the limit of 200000000;"):
        images.read_header(large(200_016_000), 200_000_000)
    for data in (
        large(60_000_000, progressive=True),
        hostile.png(8000, 7000),
        encode(Image.new("1", (8000, 7000)), "TIFF"),
    ):
        with pytest.raises(TooManyPixels, match="limit of 50000000 for an image other than a JPEG of a single scan"):
            images.read_header(data, 200_000_000)
        with pytest.raises(TooManyPixels, match="more than the limit of 40000000;"):
            images.read_header(data, 40_000_000)


@pytest.mark.parametrize("size", [(8160, 6144), (8688, 5792), (12_000, 9_000)])
def test_photographs_of_phones_are_answered(size: tuple[int, int]) -> None:
    whole = sharp((510, 384)).convert("L").resize(size, Image.Resampling.NEAREST)
    data = encode(whole, "JPEG", quality=90)
    with Sandbox() as sandbox:
        decoder = Decoder(PRESET, 200_000_000, None, True, sandbox)
        header = decoder.read(data)
        assert images.decode_bytes(header, PRESET, True) < 4 * header.pixels
        assert np.abs(decoder.decode_now(data) - reference(whole.reduce(8))).mean() < 3
    assert containers.MAX_PIXELS_UNSCALED < header.pixels < 200_000_000


def test_memory_of_a_scaled_jpeg_is_less_than_that_of_other_images() -> None:
    with Sandbox() as sandbox:
        decoder = Decoder(PRESET, 200_000_000, 30_000_000, True, sandbox)
        assert decoder.read(large(200_000_000)).pixels == 200_000_000
        with pytest.raises(TooManyPixels, match=r"takes .* MiB to decode, more than the limit of 572 MiB"):
            Decoder(PRESET, 200_000_000, 30_000_000, False, sandbox).read(large(200_000_000))


def test_pillows_own_limit_is_not_changed() -> None:
    before = Image.MAX_IMAGE_PIXELS
    images.decode(images.read_header(encode(PICTURE, "JPEG"), MAX_PIXELS), PRESET, fast=True)
    assert before == Image.MAX_IMAGE_PIXELS
    assert Image.open(io.BytesIO(PNG)).size == PICTURE.size
