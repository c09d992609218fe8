"""Which JPEGs a GPU gets: files of the most common kind that hold all of their pixels, as far as the header shows."""

import struct
from pathlib import Path

import pytest
from PIL import Image

from app import images
from app.images import device
from tests.conftest import CAT, PHOTOGRAPHS
from tests.hostile import encode, jpeg_segment
from tests.images.test_pillow import MAX_PIXELS, sharp

SIZE = (301, 403)
PHOTO = encode(sharp(SIZE), "JPEG", quality=85)
GREY = encode(sharp(SIZE).convert("L"), "JPEG", quality=85)
END = b"\xff\xd9"


def takes(data: bytes) -> bool:
    return device.takes(images.read_header(data, 10 * MAX_PIXELS))


def with_segment(marker: int, payload: bytes) -> bytes:
    return PHOTO[:2] + jpeg_segment(marker, payload) + PHOTO[2:]


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        PHOTO,
        GREY,
        encode(sharp(SIZE), "JPEG", subsampling=0),
        encode(sharp(SIZE), "JPEG", subsampling="4:2:2"),
        encode(sharp(SIZE), "JPEG", optimize=True),
        encode(sharp(SIZE), "JPEG", exif=exif(6)),
        with_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 1)),
        with_segment(0xE2, b"ICC_PROFILE\0"),
        CAT.read_bytes(),
    ],
    ids=["photo", "grey", "4:4:4", "4:2:2", "optimised", "exif", "adobe", "profile", "cat"],
)
def test_a_baseline_jpeg_is_for_the_device(data: bytes) -> None:
    assert takes(data)


@pytest.mark.parametrize(
    "data",
    [
        encode(sharp(SIZE), "PNG"),
        encode(sharp(SIZE), "JPEG", progressive=True),
        encode(sharp(SIZE).convert("CMYK"), "JPEG"),
        encode(sharp(SIZE), "JPEG", restart_marker_rows=1),
        encode(sharp(SIZE), "JPEG", keep_rgb=True),
        PHOTO.replace(b"\xff\xc0", b"\xff\xc1", 1),
        with_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0)),
        PHOTO[:-2],
        PHOTO[: len(PHOTO) // 2],
        PHOTO + b"\n",
    ],
    ids=[
        "another format",
        "progressive",
        "CMYK",
        "restart markers",
        "RGB",
        "extended sequential",
        "RGB by Adobe",
        "without its end",
        "truncated",
        "a line break at the end",
    ],
)
def test_any_other_file_is_not(data: bytes) -> None:
    assert not takes(data)


def test_a_file_that_states_more_pixels_than_it_can_hold_is_not() -> None:
    frame = PHOTO.index(b"\xff\xc0")
    stated = struct.pack(">HH", *reversed(SIZE))
    assert PHOTO[frame + 5 : frame + 9] == stated
    grown = PHOTO.replace(stated, struct.pack(">HH", 5000, 5000), 1)
    assert images.read_header(grown, MAX_PIXELS).pixels < device.MAX_PIXELS
    assert not takes(grown)


def test_an_image_that_takes_too_much_memory_on_the_device_is_not() -> None:
    assert not takes(encode(Image.new("L", (6000, 6000)), "JPEG", quality=100))


@pytest.mark.shared
def test_the_device_gets_most_photographs() -> None:
    taken = [takes(Path(path).read_bytes()) for path in PHOTOGRAPHS]
    assert sum(taken) >= 0.9 * len(taken)
