"""Bytes to crop: hostile files end in our errors, and every other file in torchvision's crop."""

import functools
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from app import images
from app.errors import TooManyPixels, TopkError, UndecodableImage, UnsupportedMediaType
from app.images import Preprocessing, geometry
from tests import hostile
from tests.conftest import PHOTOGRAPHS, slow
from tests.hostile import Case, encode, picture

MAX_PIXELS = 50_000_000
MEAN = STD = (0.5, 0.5, 0.5)
PRESET = Preprocessing(256, 224, "bilinear", MEAN, STD)
PRESETS = [
    PRESET,
    Preprocessing(232, 224, "bilinear", MEAN, STD),
    Preprocessing(384, 384, "bicubic", MEAN, STD),
    Preprocessing(256, 224, "bicubic", MEAN, STD),
]
heif = pytest.mark.skipif(not images.heif_installed(), reason="pillow-heif is not installed")
Levels = npt.NDArray[np.int16]


def crop(data: bytes, preset: Preprocessing = PRESET, fast: bool = False) -> Levels:
    return images.decode(images.read_header(data, MAX_PIXELS), preset, fast).astype(np.int16)


def reference(image: Image.Image, preset: Preprocessing = PRESET) -> Levels:
    """The geometry of torchvision.transforms._presets.ImageClassification."""
    resized = F.resize(image.convert("RGB"), [preset.resize], InterpolationMode(preset.interpolation))
    return np.asarray(F.center_crop(resized, [preset.crop])).astype(np.int16)


def upright(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image)


def on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def assert_close(ours: Levels, theirs: Levels, levels: int = 1) -> None:
    """Pillow keeps the box it resizes in single precision: a tie may round the other way, in either pass."""
    difference = np.abs(ours - theirs)
    assert ours.shape == theirs.shape
    assert difference.max() <= max(levels, 2)
    assert (difference > levels).mean() < 1e-3


def assert_torchvisions(data: bytes, theirs: Levels, preset: Preprocessing = PRESET) -> None:
    """To the last bit where speed was not asked for; within a grey level where it was."""
    assert np.array_equal(crop(data, preset), theirs)
    assert_close(crop(data, preset, fast=True), theirs)


def outcome(case: Case) -> str:
    try:
        decoded = images.decode(images.read_header(case.data, MAX_PIXELS), PRESET, fast=True)
    except TopkError as error:
        return error.code
    assert (decoded.shape, decoded.dtype) == ((224, 224, 3), np.uint8)
    return "ok"


@functools.cache
def sharp(size: tuple[int, int]) -> Image.Image:
    """Blocks of random colour: resizing them wrongly shows."""
    small = max(1, size[0] // 3), max(1, size[1] // 3)
    noise = Image.frombytes("RGB", small, random.Random(1).randbytes(small[0] * small[1] * 3))
    return noise.resize(size, Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    "case",
    [slow(case) if case.name == "WebP of 49 million pixels" else case for case in hostile.cases()],
    ids=lambda case: case.name,
)
def test_hostile_file_is_decoded_or_refused_with_its_code(case: Case) -> None:
    assert outcome(case) in case.codes


def test_names_of_hostile_files_are_unique() -> None:
    names = [case.name for case in hostile.cases()]
    assert len(set(names)) == len(names) > 500


@pytest.mark.shared
@pytest.mark.parametrize("preset", PRESETS[:2], ids=str)
def test_photographs_match_torchvision(preset: Preprocessing) -> None:
    for path in PHOTOGRAPHS:
        data = path.read_bytes()
        theirs = reference(upright(data), preset)
        assert np.array_equal(crop(data, preset), theirs)
        if min(upright(data).size) < 4 * preset.resize:  # else fast decoding is scaled, and close only on the whole
            assert_close(crop(data, preset, fast=True), theirs)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p.resize}-{p.crop}-{p.interpolation}")
@pytest.mark.parametrize("size", [(500, 375), (333, 501), (224, 224), (255, 257), (97, 1031), (640, 121), (2001, 1333)])
def test_odd_sizes_match_torchvision(size: tuple[int, int], preset: Preprocessing) -> None:
    data = encode(sharp(size), "PNG", compress_level=1)
    if max(size) < 8 * min(size):
        assert_torchvisions(data, reference(sharp(size), preset), preset)
    else:
        assert_close(crop(data, preset), reference(sharp(size), preset))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), slow((10_000, 2)), slow((2, 10_000)), (1, 65_000)])
def test_extreme_sizes_match_torchvision(size: tuple[int, int]) -> None:
    data = encode(sharp(size), "PNG")
    if max(size) // min(size) < 10_000:  # torchvision would resize the whole picture to gigabytes
        assert_close(crop(data), reference(sharp(size)))
    assert crop(data).shape == (224, 224, 3)


@pytest.mark.parametrize("orientation", [*map(slow, (1, 2, 4, 5, 7)), 3, 6, 8])  # cameras write 3, 6 and 8
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", pytest.param("HEIF", marks=heif)])
def test_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(sharp((301, 402)), format, exif=exif.tobytes())
    assert_torchvisions(data, reference(upright(data)))
    assert upright(data).size == ((301, 402) if orientation < 5 else (402, 301))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_at_the_end_of_a_png_is_applied(orientation: int) -> None:
    whole = encode(sharp((301, 402)), "PNG")
    exif = hostile.png_chunk(b"eXIf", hostile.tiff((0x0112, 3, 1, orientation)))
    data = whole[:-12] + exif + whole[-12:]
    for preset in (PRESET, PRESETS[3]):  # bicubic tells which axis is resized first
        assert_close(crop(data, preset), reference(upright(data), preset))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "value"), [(3, "HH"), (4, "L")])
def test_orientation_is_read_in_both_byte_orders_and_widths(kind: int, value: str, order: str) -> None:
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HLH", 42, 8, 1)
    exif = b"Exif\0\0" + head + struct.pack(order + "HHL" + value + "L", 0x0112, kind, 1, 6, *[0] * len(value))
    data = encode(sharp((301, 402)), "JPEG", exif=exif)
    assert upright(data).size == (402, 301)
    assert_close(crop(data), reference(upright(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_scaled_jpegs(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.linear_gradient("L").resize((1600, 1100)), "JPEG", exif=exif)
    assert_close(crop(data, fast=True), crop(data), 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_each_colour_space_matches(mode: str, progressive: bool) -> None:
    data = encode(sharp((300, 400)).convert(mode), "JPEG", progressive=progressive)
    assert_close(crop(data), reference(upright(data)))


def test_cmyk_without_the_adobe_segment_matches() -> None:
    data = encode(sharp((300, 400)).convert("CMYK"), "JPEG")
    start = data.index(b"\xff\xee")
    plain = data[:start] + data[start + 16 :]
    assert b"Adobe" not in plain
    assert_close(crop(plain), reference(upright(plain)))


def test_adobe_rgb_jpeg_keeps_its_colours() -> None:
    data = encode(sharp((300, 400)), "JPEG", keep_rgb=True, quality=95)
    assert b"Adobe" in data
    assert_close(crop(data), reference(upright(data)))


def test_alpha_is_laid_on_white() -> None:
    image = sharp((300, 400)).copy()
    image.putalpha(sharp((300, 400)).getchannel("G"))
    for mode in ("RGBA", "LA"):
        picture = image.convert(mode)
        assert_close(crop(encode(picture, "PNG")), reference(on_white(picture)), 2)


def test_alpha_of_other_formats_is_laid_on_white() -> None:
    image = sharp((300, 400)).copy()
    image.putalpha(sharp((300, 400)).getchannel("G"))
    for data in (encode(image, "WEBP", lossless=True), encode(image, "TIFF"), encode(image.convert("LA"), "TIFF")):
        assert_close(crop(data), reference(on_white(upright(data))), 2)


def test_hidden_colours_do_not_bleed() -> None:
    pixels = np.zeros((300, 400, 4), np.uint8)
    pixels[:, 200:] = (0, 0, 255, 255)
    pixels[:, :200] = (255, 0, 0, 0)
    red, green, blue = np.moveaxis(crop(encode(Image.fromarray(pixels), "PNG")), 2, 0)
    assert (red.min(), red.max(), blue.min()) == (0, 255, 255)
    assert np.abs(red - green).max() <= 1


def test_transparent_palette_is_laid_on_white() -> None:
    image = sharp((300, 400)).quantize(200)
    alphas = bytes(random.Random(2).randbytes(200))
    data = encode(image, "PNG", transparency=alphas)
    assert_close(crop(data), reference(on_white(upright(data))), 2)
    data = encode(image, "GIF", transparency=7)
    assert_close(crop(data), reference(on_white(upright(data))), 2)


def test_palette_with_alpha_channel_is_laid_on_white() -> None:
    image = sharp((300, 400)).quantize(200).convert("PA")
    image.putalpha(sharp((300, 400)).getchannel("G"))
    assert_close(crop(encode(image, "TIFF")), reference(on_white(image)), 2)


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (10, 200, 30)), ("L", 90)])
def test_transparent_colour_is_laid_on_white(mode: str, colour: tuple[int, int, int] | int) -> None:
    image = sharp((300, 400)).convert(mode)
    image.paste(colour, (50, 60, 250, 300))
    data = encode(image, "PNG", transparency=colour)
    assert crop(data)[112, 112].tolist() == [255, 255, 255]
    assert_close(crop(data), reference(on_white(upright(data))), 2)


@pytest.mark.parametrize(("mode", "depth"), [("1", 1), ("L", 8)])
def test_bilevel_and_grey_match(mode: str, depth: int) -> None:
    image = sharp((300, 400)).convert(mode)
    for format in ("PNG", "TIFF", "BMP"):
        assert_close(crop(encode(image, format)), reference(image))


def test_transparent_bilevel_is_laid_on_white() -> None:
    rows = zlib.compress(b"".join(b"\0" + b"\x0f" * 50 for _ in range(300)))
    chunks = hostile.png_chunk(b"tRNS", b"\0\0"), hostile.png_chunk(b"IDAT", rows)
    assert crop(hostile.png(400, 300, *chunks, color=0, depth=1)).min() == 255


def test_grey_of_16_bits_is_cut_to_its_high_byte() -> None:
    high = np.asarray(sharp((300, 400)).convert("L"))
    deep = Image.fromarray(high.astype(np.uint16) << 8 | 0xFF)
    for format in ("PNG", "TIFF"):
        assert_close(crop(encode(deep, format)), reference(Image.fromarray(high)))


def test_colour_of_16_bits_is_cut_to_its_high_byte() -> None:
    high = np.asarray(sharp((300, 400)))
    rows = (high.astype(">u2") << 8 | 0x7F).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    deep = hostile.png(300, 400, hostile.png_chunk(b"IDAT", zlib.compress(data)), depth=16)
    assert_close(crop(deep), reference(sharp((300, 400))))


def test_wide_integers_are_read_as_16_bits() -> None:
    values = np.linspace(-70_000, 140_000, 300 * 400).reshape(400, 300).astype(np.int32)
    expected = (values.clip(0, 0xFFFF) >> 8).astype(np.uint8)
    assert_close(crop(encode(Image.fromarray(values), "TIFF")), reference(Image.fromarray(expected)))


def test_floats_are_read_as_0_to_255() -> None:
    values = np.linspace(-100, 400, 300 * 400).reshape(400, 300).astype(np.float32)
    expected = values.clip(0, 255).astype(np.uint8)
    values[0, :3] = np.inf, -np.inf, np.nan
    assert_close(crop(encode(Image.fromarray(values), "TIFF")), reference(Image.fromarray(expected)))


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_counts(format: str, options: dict[str, bool]) -> None:
    first, second = sharp((300, 400)).quantize(64).convert("RGB"), Image.new("RGB", (300, 400), "red")
    data = encode(first, format, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert_close(crop(data), reference(first), 2)


@pytest.mark.parametrize(
    "options", [{"big_tiff": True}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "group4"}]
)
def test_tiff_of_each_kind_matches(options: dict[str, bool | str]) -> None:
    mode = "1" if options.get("compression") == "group4" else "RGB"
    data = encode(sharp((301, 403)).convert(mode), "TIFF", **options)
    assert_close(crop(data), reference(upright(data)))


def test_tiff_loses_its_metadata() -> None:
    plain = encode(sharp((300, 400)), "TIFF")
    described = encode(sharp((300, 400)), "TIFF", tiffinfo={270: "a cat", 700: b"<xmp/>"}, icc_profile=b"profile")
    header = images.read_header(described, MAX_PIXELS)
    assert set(Image.open(io.BytesIO(header.data)).tag_v2) <= set(Image.open(io.BytesIO(plain)).tag_v2)
    assert_close(crop(described), crop(plain), 0)


def test_jpeg_loses_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(sharp((300, 400)), "JPEG", exif=exif, icc_profile=bytes(70_000), comment="a cat")
    header = images.read_header(data, MAX_PIXELS)
    assert len(header.data) < len(data) - 70_000
    assert not {"exif", "icc_profile", "comment"} & Image.open(io.BytesIO(header.data)).info.keys()
    assert_close(crop(data), reference(upright(data)))


def test_jpeg_without_metadata_is_not_copied() -> None:
    data = encode(sharp((300, 400)), "JPEG")
    assert images.read_header(data, MAX_PIXELS).data is data


def test_first_picture_of_a_multi_picture_jpeg_counts() -> None:
    first, second = sharp((3000, 2100)), Image.new("RGB", (300, 400), "red")
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert images.read_header(data, MAX_PIXELS).scans == 1
    assert_close(crop(data), reference(upright(data)))
    assert np.abs(crop(data, fast=True) - crop(data)).mean() < 4


def test_baseline_jpeg_in_several_scans_is_recognised() -> None:
    frame = hostile.jpeg_segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    scan = hostile.jpeg_segment(0xDA, b"\1\1\0\0\x3f\0")
    header = images.read_header(b"\xff\xd8" + frame + scan * 3 + b"\xff\xd9", MAX_PIXELS)
    assert (header.scans, header.progressive) == (3, True)


@pytest.mark.parametrize("size", [(4032, 3024), (3024, 4032)])
def test_fast_decoding_is_close(size: tuple[int, int]) -> None:
    photograph = Image.effect_mandelbrot((504, 504), (-2, -1.5, 1, 1.5), 100).resize(size, Image.Resampling.BICUBIC)
    data = encode(photograph.convert("RGB"), "JPEG", quality=90)
    difference = np.abs(crop(data, fast=True) - crop(data))
    assert difference.mean() < 1.5


@pytest.mark.parametrize("short", [255, 512, 1023, 1024, 2047, 2048, 3000, 4095, 4096, 7000])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p.resize}")
def test_fast_decoding_stays_above_twice_the_resize(short: int, preset: Preprocessing) -> None:
    for width, height in ((short, short * 3), (short * 3, short)):
        scale = geometry.jpeg_scale(width, height, preset)
        assert scale == 1 or short // scale >= 2 * preset.resize
        assert scale == 8 or short // (scale * 2) < 2 * preset.resize


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_header_has_the_size(format: str) -> None:
    header = images.read_header(picture(format, (64, 48)), MAX_PIXELS)
    assert (header.format, header.width, header.height, header.pixels) == (format, 64, 48, 64 * 48)


@heif
def test_header_of_a_heic_has_the_size_of_the_coded_image() -> None:
    header = images.read_header(picture("HEIF", (64, 48)), MAX_PIXELS)
    assert (header.format, header.width, header.height) == ("HEIF", 64, 64)  # whole blocks, cropped by the container


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
def test_header_is_judged_without_pixels(format: str) -> None:
    whole = picture(format, (400, 300), **({"compression": "tiff_lzw"} if format == "TIFF" else {}))
    short = whole[: len(whole) // 2] if format != "TIFF" else _without_strips(whole)
    header = images.read_header(short, MAX_PIXELS)
    assert header.pixels == 400 * 300
    with pytest.raises(UndecodableImage):
        images.decode(header, PRESET, fast=False)


def _without_strips(whole: bytes) -> bytes:
    """Zeros where the directory, which stands at the end, says the strips are."""
    (directory,) = struct.unpack_from("<L", whole, 4)
    return whole[:8] + bytes(directory - 8) + whole[directory:] if directory > 1000 else whole[:-1000]


def test_webp_is_judged_by_30_bytes() -> None:
    short = picture("WEBP", (400, 300))[:30]
    assert images.read_header(short, MAX_PIXELS).pixels == 400 * 300
    with pytest.raises(UndecodableImage):
        crop(short)


@pytest.mark.parametrize("size", [(1, 1), (255, 257), (256, 4097), (16383, 2)])
@pytest.mark.parametrize("kind", ["lossy", "lossless", "alpha", "lossless alpha", "animated", "exif"])
def test_webp_size_agrees_with_pillow(kind: str, size: tuple[int, int]) -> None:
    image = Image.new("RGBA" if "alpha" in kind else "RGB", size)
    options = {"animated": {"save_all": True, "append_images": [Image.new("RGB", size, "red")]}, "exif": {"exif": b"x"}}
    data = encode(image, "WEBP", lossless="lossless" in kind, method=0, **options.get(kind, {}))
    header = images.read_header(data, MAX_PIXELS)
    assert (header.width, header.height) == Image.open(io.BytesIO(data)).size == size


def test_too_many_pixels_are_refused_by_the_header() -> None:
    data = picture("PNG", (101, 100))
    assert images.read_header(data, 10_100).pixels == 10_100
    with pytest.raises(TooManyPixels, match="101x100"):
        images.read_header(data, 10_099)


def test_more_pixels_than_pillow_accepts_are_too_many() -> None:
    with pytest.raises(TooManyPixels):
        images.read_header(hostile.png(60_000, 60_000), 10**10)
    header = images.Header(hostile.png(60_000, 60_000), "PNG", 60_000, 60_000)
    with pytest.raises(TooManyPixels):
        images.decode(header, PRESET, fast=True)


def test_progressive_jpeg_is_recognised() -> None:
    assert images.read_header(picture("JPEG", progressive=True), MAX_PIXELS).progressive
    assert not images.read_header(picture("JPEG"), MAX_PIXELS).progressive


def test_scans_of_a_progressive_jpeg_are_counted() -> None:
    data = picture("JPEG", progressive=True)
    assert images.read_header(data, MAX_PIXELS).scans == data.count(b"\xff\xda") > 1


def test_scans_behind_the_picture_are_not_counted() -> None:
    header = images.read_header(picture("JPEG") + picture("JPEG", progressive=True), MAX_PIXELS)
    assert (header.scans, header.progressive) == (1, False)


def test_cost_grows_with_pixels() -> None:
    for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        files = (encode(Image.new("RGB", size), name) for size in ((400, 320), (1600, 1280)))
        small, large = (images.read_header(data, MAX_PIXELS) for data in files)
        assert images.decode_seconds(large, PRESET, False) > 2 * images.decode_seconds(small, PRESET, False) > 0


def test_cost_grows_with_scans_and_shrinks_with_scale() -> None:
    baseline, progressive = (
        images.read_header(encode(Image.new("RGB", (2400, 2400)), "JPEG", progressive=several), MAX_PIXELS)
        for several in (False, True)
    )
    exact, fast = (images.decode_seconds(baseline, PRESET, fast) for fast in (False, True))
    assert fast < exact < images.decode_seconds(progressive, PRESET, False)


def test_cost_follows_the_format() -> None:
    files = (encode(Image.new("L", (800, 800)), name) for name in ("JPEG", "BMP", "GIF", "PNG", "WEBP"))
    costs = [images.decode_seconds(images.read_header(data, MAX_PIXELS), PRESET, False) for data in files]
    assert costs == sorted(set(costs))


def test_run_length_coded_bmp_is_costly() -> None:
    plain = encode(Image.new("P", (400, 400)), "BMP")
    coded = plain[:30] + struct.pack("<I", 1) + plain[34:]
    plain_header, coded_header = (images.read_header(data, MAX_PIXELS) for data in (plain, coded))
    assert images.decode_seconds(coded_header, PRESET, True) > 10 * images.decode_seconds(plain_header, PRESET, True)


@pytest.mark.parametrize(
    ("data", "bounded"),
    [
        (picture("JPEG"), True),
        (picture("JPEG", progressive=True), True),
        (picture("PNG"), True),
        (picture("GIF", mode="P"), True),
        (picture("BMP"), True),
        (picture("WEBP"), True),
        (picture("WEBP", exif=hostile.exif((0x0112, 3, 1, 6))), True),
        (picture("WEBP", lossless=True), False),
        (encode(Image.linear_gradient("L").convert("LA").convert("RGBA").rotate(9), "WEBP"), False),  # lossless alpha
        (picture("WEBP", save_all=True, append_images=[Image.new("RGB", (61, 47))]), False),
        (picture("TIFF"), False),
        (picture("AVIF"), False),
    ],
)
def test_only_formats_whose_container_bounds_their_cost_are_bounded(data: bytes, bounded: bool) -> None:
    assert images.read_header(data, MAX_PIXELS).bounded is bounded


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_jpeg_of_another_coding_process_is_unsupported(marker: int) -> None:
    whole = picture("JPEG")
    frame = whole.index(b"\xff\xc0")
    for before in (b"", b"\xff" * 9, bytes(50), hostile.jpeg_segment(0xFE, b"a comment")):
        with pytest.raises(UnsupportedMediaType, match="coding is not supported"):
            images.read_header(whole[:frame] + before + bytes([0xFF, marker]) + whole[frame + 2 :], MAX_PIXELS)


def test_jpeg_of_12_bits_is_unsupported() -> None:
    whole = picture("JPEG")
    precision = whole.index(b"\xff\xc0") + 4
    with pytest.raises(UnsupportedMediaType, match="12 bits"):
        images.read_header(whole[:precision] + b"\x0c" + whole[precision + 1 :], MAX_PIXELS)


@pytest.mark.parametrize("marker", [0xC0, 0xC2, 0xC9])
@pytest.mark.parametrize("place", ["before the first scan", "between two scans"])
def test_second_frame_is_refused(marker: int, place: str) -> None:
    whole = picture("JPEG", progressive=True)
    frame = whole.index(b"\xff\xc2")
    second = bytes([0xFF, marker]) + whole[frame + 2 : frame + 19]
    at = whole.index(b"\xff\xda") if place.startswith("before") else whole.rindex(b"\xff\xda")
    with pytest.raises((UndecodableImage, UnsupportedMediaType)):
        crop(whole[:at] + second + whole[at:])


def test_jpeg_with_more_junk_than_is_searched_is_refused() -> None:
    whole = picture("JPEG")
    with pytest.raises(UndecodableImage):
        images.read_header(whole[:20] + b"\xff" * 10**6 + whole[20:], MAX_PIXELS)


def test_arithmetic_jpeg_inside_a_tiff_is_unsupported() -> None:
    whole = picture("TIFF", compression="jpeg")
    frame = whole.index(b"\xff\xc0")
    header = images.read_header(whole[:frame] + b"\xff\xc9" + whole[frame + 2 :], MAX_PIXELS)
    with pytest.raises(UnsupportedMediaType, match="arithmetic"):
        images.decode(header, PRESET, fast=True)


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"abCd"])
def test_png_loses_chunks_that_pixels_do_not_need(kind: bytes) -> None:
    whole = encode(sharp((300, 400)), "PNG")
    chunks = hostile.png_chunk(kind, b"name\0\0" + zlib.compress(bytes(100_000))) * 1000
    data = whole[:33] + chunks + whole[33:-12] + chunks + whole[-12:] + bytes(1000)
    header = images.read_header(data, MAX_PIXELS)
    assert header.data == whole
    assert_close(crop(data), crop(whole), 0)


def test_tiff_counts_whole_tiles() -> None:
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 32_000, 323: 16_000, 324: 8, 325: 64}
    data = hostile.tiff(*((tag, 4, 1, value) for tag, value in tags.items()))
    with pytest.raises(TooManyPixels, match="the tiles of the image have 512000000 pixels"):
        images.read_header(data, MAX_PIXELS)


def test_jpeg_in_several_scans_counts_its_coefficients() -> None:
    baseline, progressive = (
        images.read_header(encode(Image.new("RGB", (1600, 1600)), "JPEG", progressive=several), MAX_PIXELS)
        for several in (False, True)
    )
    assert baseline.buffer == 0
    assert progressive.buffer == 1600 * 1600 * 3  # 4:2:0: half of the samples' two bytes are of the brightness


@pytest.mark.parametrize("format", ["JPEG", "GIF"])
def test_junk_that_pillow_skips_byte_by_byte_is_dropped(format: str) -> None:
    whole = picture(format, mode="P" if format == "GIF" else "RGB")
    start = whole.index(b"\xff\xdb") if format == "JPEG" else whole.index(b",")
    junk = b"\xff" * 50_000 if format == "JPEG" else b"\0" * 50_000
    header = images.read_header(whole[:start] + junk + whole[start:], MAX_PIXELS)
    assert len(header.data) <= len(whole)
    assert_close(crop(whole[:start] + junk + whole[start:]), crop(whole), 0)


def test_exif_of_an_avif_is_not_parsed() -> None:
    exif = hostile.tiff((0x0112, 3, 1, 6), (0x9999, 2, 200, 38), rest=bytes(200))
    data = encode(sharp((301, 402)), "AVIF", exif=exif)
    header = images.read_header(data, MAX_PIXELS)
    assert Image.open(io.BytesIO(data)).getexif()[0x9999]
    assert 0x9999 not in Image.open(io.BytesIO(header.data)).getexif()
    assert_close(crop(data), reference(upright(data)), 2)


@pytest.mark.parametrize("data", [b"", b"\0", b"GIF88a", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypisom"])
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        images.read_header(data, MAX_PIXELS)


def test_warnings_of_pillow_are_silent() -> None:
    data = hostile.tiff((256, 3, 2, 0), (257, 3, 1, 8))
    with pytest.raises(UndecodableImage):
        images.read_header(data, MAX_PIXELS)


def test_libtiff_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    rows = random.Random(3).randbytes(10_000)
    size = ((256, 4, 1, 8), (257, 4, 1, 5000), (258, 3, 1, 1), (259, 3, 1, 2), (262, 3, 1, 0))
    strip = ((273, 4, 1, 8 + 2 + 9 * 12 + 4), (277, 3, 1, 1), (278, 4, 1, 5000), (279, 4, 1, len(rows)))
    crop(hostile.tiff(*size, *strip, rest=rows))
    assert capfd.readouterr() == ("", "")


def test_module_imports_no_torch_and_leaves_pillow_alone() -> None:
    program = (
        "import sys; from PIL import Image, ImageFile;"
        "before = Image.MAX_IMAGE_PIXELS, dict(Image.OPEN), list(Image.ID);"
        "import app.images; assert not {'torch', 'torchvision', 'pillow_heif'} & set(sys.modules), sys.modules;"
        "assert before == (Image.MAX_IMAGE_PIXELS, Image.OPEN, Image.ID) and not ImageFile.LOAD_TRUNCATED_IMAGES"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(images.__file__).parents[1])
