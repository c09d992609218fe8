"""TIFF samples: a scene in any kind of numbers gives the same crop as the scene saved as PNG."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from PIL import Image

from app import images
from app.errors import TooManyPixels, UndecodableImage, UnsupportedMediaType
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from tests.hostile import encode
from tests.images.test_pillow import MAX_PIXELS, PRESET, Levels, assert_close, crop, sharp
from tests.images.tiffs import Values, tiff

SIZE = (83, 61)
COLOUR = np.asarray(sharp(SIZE)).astype(np.int64)
GREY = np.asarray(sharp(SIZE).convert("L")).astype(np.int64)
ALPHA = np.asarray(sharp(SIZE).getchannel("G")).astype(np.int64)
LAYOUTS = {
    "a strip": {},
    "strips": {"rows": 7, "deflate": True},
    "tiles": {"tile": (32, 16)},
    "deflated tiles": {"tile": (16, 32), "deflate": True},
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
orders = pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])


def shown(pixels: Values, mode: str) -> Levels:
    return crop(encode(Image.frombytes(mode, SIZE, pixels.astype(np.uint8).tobytes()), "PNG"))


def of_bits(values: Values, bits: int) -> Values:
    return values * (2**bits - 1) // 255


@orders
@layouts
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 32])
def test_unsigned_samples(bits: int, white_is_zero: bool, layout: Mapping[str, object], order: str) -> None:
    values = of_bits(GREY, bits)
    reference = shown(values * 255 // (2**bits - 1) if bits < 8 else GREY, "L")
    stored = 2**bits - 1 - values if white_is_zero else values
    assert_close(crop(tiff(stored, bits, 1 - white_is_zero, order, **layout)), reference)  # type: ignore[arg-type]


@orders
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_samples(bits: int, white_is_zero: bool, order: str) -> None:
    whole = of_bits(GREY, bits) - 2 ** (bits - 1)
    stored = -1 - whole if white_is_zero else whole
    assert_close(crop(tiff(stored, bits, 1 - white_is_zero, order, "i")), shown(GREY, "L"))
    if bits > 8:
        positive = of_bits(GREY, bits - 1)
        stored = 2 ** (bits - 1) - 1 - positive if white_is_zero else positive
        assert_close(crop(tiff(stored, bits, 1 - white_is_zero, order, "i")), shown(GREY, "L"))


@orders
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("top", [1, 255])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_floating_point_samples(bits: int, top: int, white_is_zero: bool, order: str) -> None:
    values = GREY / 255 * top
    stored = top - values if white_is_zero else values
    assert_close(crop(tiff(stored, bits, 1 - white_is_zero, order, "f")), shown(GREY, "L"))


def test_samples_that_are_no_numbers_are_black() -> None:
    values = (GREY / 255).astype(np.float32)
    values.view(np.uint32)[0] = 0x7FA00000  # a signalling NaN, of which numpy warns
    values[1] = np.nan
    black = GREY.copy()
    black[:2] = 0
    assert_close(crop(tiff(values, 32, 1, kind="f")), shown(black, "L"))


@orders
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("largest", [1023, 4095, 16_383, 3000])
def test_largest_value_is_white(largest: int, white_is_zero: bool, order: str) -> None:
    values = GREY * largest // 255
    stored = largest - values if white_is_zero else values
    assert_close(crop(tiff(stored, 16, 1 - white_is_zero, order, tags={281: [largest]})), shown(GREY, "L"))


def test_largest_value_of_8_bits_is_a_statistic_unless_it_is_a_number_of_bits() -> None:
    assert_close(crop(tiff(GREY, 8, 1, tags={281: [200]})), shown(GREY, "L"))
    assert_close(crop(tiff(GREY // 16, 8, 1, tags={281: [15]})), shown(GREY // 16 * 17, "L"))


@pytest.mark.parametrize(("predictor", "kind", "bits"), [(2, "u", 8), (2, "u", 16), (2, "u", 32), (3, "f", 32)])
@orders
@layouts
def test_predictors(predictor: int, kind: str, bits: int, order: str, layout: Mapping[str, object]) -> None:
    options = {"predictor": predictor, **layout, "deflate": True}  # without compression there is no predictor
    values = COLOUR / 255 if kind == "f" else of_bits(COLOUR, bits)
    assert_close(crop(tiff(values, bits, 2, order, kind, **options)), shown(COLOUR, "RGB"))  # type: ignore[arg-type]


@pytest.mark.slow
@orders
@layouts
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    ("extra", "described"),
    [([], None), ([9], [0]), ([9, 200], [0, 0]), ([255], [2]), ([255], [1]), ([9, 255], [0, 2]), ([0], None)],
    ids=str,
)
def test_extra_samples_of_colours(
    extra: list[int], described: list[int] | None, bits: int, separate: bool, layout: Mapping[str, object], order: str
) -> None:
    values = np.dstack([COLOUR, *(np.full(GREY.shape, value) for value in extra)])
    tags: Mapping[int, Sequence[int]] = {338: described} if described else {}
    data = tiff(of_bits(values, bits), bits, 2, order, separate=separate, tags=tags, **layout)  # type: ignore[arg-type]
    assert_close(crop(data), shown(COLOUR, "RGB"))


@orders
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_alpha(bits: int, order: str) -> None:
    colour, grey = np.dstack([COLOUR, ALPHA]), np.dstack([GREY, ALPHA])
    for described in ({338: [2]}, {338: [999]}, {}):
        data = tiff(of_bits(colour, bits), bits, 2, order, tags=described)
        assert_close(crop(data), shown(colour, "RGBA"), 2)
        assert_close(crop(tiff(of_bits(grey, bits), bits, 1, order, tags=described)), shown(grey, "LA"), 2)
    for values, photometric, mode in ((colour, 2, "RGBA"), (grey, 1, "LA")):
        premultiplied = np.dstack([values[..., :-1] * ALPHA[..., None] // 255, ALPHA])
        data = tiff(of_bits(premultiplied, bits), bits, photometric, order, tags={338: [1]})
        assert_close(crop(data), shown(values, mode), 3)


def test_transparent_tiff_stays_transparent() -> None:
    data = tiff(np.dstack([COLOUR, np.zeros_like(GREY)]), 8, 2, tags={338: [2]})
    assert crop(data).min() == 255


@orders
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("described", [None, 0, 1, 2])
def test_cmyk_with_an_extra_sample(described: int | None, bits: int, order: str) -> None:
    inks = np.asarray(sharp(SIZE).convert("CMYK")).astype(np.int64)
    values = inks if described is None else np.dstack([inks, np.full(GREY.shape, 255)])
    tags = {} if described is None else {338: [described]}
    assert_close(crop(tiff(of_bits(values, bits), bits, 5, order, tags=tags)), shown(COLOUR, "RGB"))


@orders
@pytest.mark.parametrize("unit", [1, 257], ids=["colours of 8 bits", "colours of 16 bits"])
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_palettes(bits: int, unit: int, order: str) -> None:
    colours = np.arange(2**bits) * 255 // (2**bits - 1)
    data = tiff(of_bits(GREY, bits), bits, 3, order, tags={320: [*(colours * unit).tolist()] * 3})
    assert_close(crop(data), shown(colours[of_bits(GREY, bits)], "L"))


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "zstd", "lzma"])
def test_compressions_of_deep_samples(compression: str) -> None:
    deep = Image.fromarray(of_bits(GREY, 16).astype(np.uint16))
    assert_close(crop(encode(deep, "TIFF", compression=compression)), shown(GREY, "L"))


def test_file_without_a_colour_space_is_read_as_libtiff_reads_it() -> None:
    data = tiff(GREY, 8, 1)
    entry = data.index(b"\x06\x01\x03\0\x01\0\0\0")
    assert_close(crop(data[:entry] + b"\x08\x01" + data[entry + 2 :]), shown(GREY, "L"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"photometric": 32803}, "a colour filter array"),
        ({"photometric": 4}, "a transparency mask"),
        ({"photometric": 77}, "an unknown colour space"),
        ({"tags": {259: [34712]}}, "JPEG 2000 compression"),
        ({"tags": {259: [34887]}}, "LERC compression"),
        ({"tags": {259: [31337]}}, "unknown .number 31337. compression"),
        ({"tags": {339: [6]}}, "complex samples of 8 bits"),
        ({"bits": 24, "kind": "u", "tags": {339: [3]}}, "floating-point samples of 24 bits"),
        ({"tags": {317: [3]}}, "predictor 3 for samples of 8 bits"),
    ],
)
def test_kind_that_is_not_decoded_is_unsupported_with_the_reason(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=reason):
        images.read_header(tiff(GREY, **{"bits": 8, "photometric": 1} | options), MAX_PIXELS)  # type: ignore[arg-type]


def test_mixed_sizes_and_other_inks_are_unsupported() -> None:
    with pytest.raises(UnsupportedMediaType, match=r"samples of different kinds .5, 6, 5 bits"):
        images.read_header(tiff(COLOUR, 8, 2, tags={258: [5, 6, 5]}), MAX_PIXELS)
    with pytest.raises(UnsupportedMediaType, match="inks other than CMYK"):
        images.read_header(tiff(np.dstack([COLOUR, GREY]), 8, 5, tags={332: [2]}), MAX_PIXELS)


def test_fewer_samples_than_colours_are_refused() -> None:
    with pytest.raises(UndecodableImage, match="its colours need 3"):
        images.read_header(tiff(COLOUR[..., :2], 8, 2), MAX_PIXELS)


def test_truncated_samples_are_refused() -> None:
    data = tiff(GREY * 16, 12, 1, deflate=True)
    with pytest.raises(UndecodableImage):
        crop(data.replace(data[500:2500], b"", 1))


def test_samples_that_take_too_much_memory_are_refused_by_the_header() -> None:
    flat = np.zeros((500, 500, 32))
    with Sandbox() as sandbox, pytest.raises(TooManyPixels, match="MiB to decode"):
        Decoder(PRESET, MAX_PIXELS, 2_000_000, True, sandbox).read(tiff(flat, 64, 1, kind="f", deflate=True))


@pytest.mark.slow
def test_samples_stay_within_the_memory_that_is_accounted_for() -> None:
    with Sandbox() as sandbox:
        decoder = Decoder(PRESET, MAX_PIXELS, None, True, sandbox)
        for values, bits, photometric, kind in (
            (np.zeros((900, 1000, 3)), 64, 2, "f"),
            (np.zeros((900, 1000, 8), np.int64), 31, 1, "u"),
            (np.zeros((2, 500_000), np.int64), 12, 1, "u"),
            (np.zeros((500_000, 2), np.int64), 16, 1, "u"),
        ):
            assert decoder.decode_now(tiff(values, bits, photometric, kind=kind, deflate=True)).shape == (224, 224, 3)
