"""The EXIF orientation in every type of integer, and in every container: the crop is that of the upright PNG."""

import struct

import numpy as np
import pytest
from PIL import Image

from tests import hostile
from tests.hostile import encode
from tests.images.test_pillow import PRESET, crop
from tests.images.test_pillow import sharp as picture

SIZE = (301, 402)
STORED = {  # what a camera stores, by the orientation that it writes
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
INTEGERS = {
    "BYTE": (1, "B"),
    "SHORT": (3, "H"),
    "LONG": (4, "L"),
    "SBYTE": (6, "b"),
    "SSHORT": (8, "h"),
    "SLONG": (9, "l"),
}


def exif(kind: int, value: bytes, order: str = "<", count: int = 1) -> bytes:
    """An EXIF block whose only tag is the orientation."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HLH", 42, 8, 1)
    return head + struct.pack(order + "HHL", 0x0112, kind, count) + value.ljust(4, b"\0") + bytes(4)


def png(orientation: int, block: bytes) -> bytes:
    """The picture as a camera stores it, with this EXIF block."""
    image, turn = picture(SIZE), STORED[orientation]
    whole = encode(image if turn is None else image.transpose(turn), "PNG")
    return whole[:-12] + hostile.png_chunk(b"eXIf", block) + whole[-12:]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("orientation", STORED)
def test_an_orientation_of_any_type_of_integer_is_applied(orientation: int, kind: str, order: str) -> None:
    number, code = INTEGERS[kind]
    data = png(orientation, exif(number, struct.pack(order + code, orientation), order))
    assert np.abs(crop(data, PRESET) - crop(encode(picture(SIZE), "PNG"), PRESET)).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("kind", ["BYTE", "SSHORT", "SLONG"])
def test_in_every_container(format: str, kind: str) -> None:
    number, code = INTEGERS[kind]
    image = picture(SIZE)
    for order in "<>":
        block = b"Exif\0\0" + exif(number, struct.pack(order + code, 6), order)
        usual = b"Exif\0\0" + exif(3, struct.pack(order + "H", 6), order)
        assert np.array_equal(crop(encode(image, format, exif=block)), crop(encode(image, format, exif=usual)))
        assert not np.array_equal(crop(encode(image, format, exif=usual)), crop(encode(image, format)))


@pytest.mark.parametrize("kind", [1, 6, 8, 9])
def test_in_the_directory_of_a_tiff(kind: int) -> None:
    usual = encode(picture(SIZE), "TIFF", tiffinfo={0x0112: 6})
    entry = struct.pack("<HHL", 0x0112, 3, 1)
    assert usual.count(entry) == 1
    assert np.array_equal(crop(usual.replace(entry, struct.pack("<HHL", 0x0112, kind, 1))), crop(usual))


@pytest.mark.parametrize(
    "block",
    [
        exif(2, b"6"),
        exif(7, b"\6"),
        exif(11, struct.pack("<f", 6)),
        exif(3, struct.pack("<HH", 6, 6), count=2),
        exif(1, b"\0"),
        exif(1, b"\x09"),
        exif(6, b"\xfa"),
        exif(8, struct.pack("<h", -6)),
    ],
)
def test_any_other_value_is_ignored(block: bytes) -> None:
    assert np.array_equal(crop(png(1, block)), crop(encode(picture(SIZE), "PNG")))
