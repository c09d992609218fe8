"""JPEGs with and without all their pixels: the end of the file does not matter, missing pixels do."""

import contextlib
import struct

import pytest
from PIL import Image

from app import images
from app.errors import UndecodableImage
from tests.hostile import encode, jpeg_segment
from tests.images.test_pillow import MAX_PIXELS, PRESET, assert_close, crop, reference, sharp, upright

KINDS = {
    "baseline": {},
    "without subsampling": {"subsampling": 0},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 3},
    "rows of restart markers": {"restart_marker_rows": 1},
    "progressive with restart markers": {"progressive": True, "restart_marker_rows": 1},
}
MODES = ["RGB", "L", "CMYK"]
TAILS = {
    "nothing": b"",
    "a newline": b"\n",
    "a line break": b"\r\n",
    "the first byte of a marker": b"\xff",
    "an end-of-image marker": b"\xff\xd9",
    "a restart marker": b"\xff\xd3",
    "zeros": bytes(40),
    "another JPEG": encode(Image.new("RGB", (300, 400), "red"), "JPEG"),
}
kinds = pytest.mark.parametrize("kind", KINDS)
modes = pytest.mark.parametrize("mode", MODES)


def jpeg(kind: str, mode: str = "RGB", size: tuple[int, int] = (301, 403)) -> bytes:
    """A JPEG without its end-of-image marker."""
    data = encode(sharp(size).convert(mode), "JPEG", quality=85, **KINDS[kind])
    assert data.endswith(b"\xff\xd9")
    return data[:-2]


def pixels(data: bytes) -> images.Crop:
    return images.decode_whole(images.read_header(data, MAX_PIXELS), PRESET)


@kinds
@modes
@pytest.mark.parametrize("tail", TAILS)
def test_jpeg_with_all_pixels_is_decoded_whatever_follows(kind: str, mode: str, tail: str) -> None:
    data = jpeg(kind, mode)
    assert_close(crop(data + TAILS[tail]), reference(upright(data + b"\xff\xd9")))


@pytest.mark.slow
@kinds
@modes
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("missing", [300, 1000, 0.1, 0.5, 0.9])
def test_jpeg_with_missing_pixels_is_refused_whatever_follows(kind: str, mode: str, tail: str, missing: float) -> None:
    data = jpeg(kind, mode)
    start = data.index(b"\xff\xda") + 20
    short = data[: len(data) - int(missing if missing > 1 else missing * (len(data) - start))]
    for fast in (False, True):
        with pytest.raises(UndecodableImage, match="pixels are missing"):
            crop(short + TAILS[tail], fast=fast)


@kinds
@modes
@pytest.mark.parametrize("tail", ["nothing", "an end-of-image marker", "zeros"])
def test_jpeg_without_its_last_bytes_is_refused_or_has_the_same_pixels(kind: str, mode: str, tail: str) -> None:
    data = jpeg(kind, mode, (83, 61))
    whole = pixels(data)
    for missing in range(1, 41):
        with contextlib.suppress(UndecodableImage):
            shown = pixels(data[:-missing] + TAILS[tail])
            assert (shown != whole).any(axis=2).sum() <= 16 * 16  # the last MCU at most


def test_optimised_jpeg_filled_up_with_zeros_is_refused() -> None:
    data = encode(sharp((301, 403)).resize((901, 1203)), "JPEG", quality=30, optimize=True)
    with pytest.raises(UndecodableImage, match="pixels are missing"):
        crop(data[: len(data) // 2] + bytes(len(data) // 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["baseline", "progressive"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_reduced_scale_needs_all_pixels_too(kind: str, scale: int) -> None:
    data = jpeg(kind, size=(2 * PRESET.resize * scale, 2 * PRESET.resize * scale + 9))
    assert_close(crop(data, fast=True), crop(data + b"\xff\xd9", fast=True), 0)
    with pytest.raises(UndecodableImage, match="pixels are missing"):
        crop(data[:-500] + b"\xff\xd9", fast=True)


def test_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    data = jpeg("progressive")
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    tables = [data.rfind(b"\xff\xc4", 0, at) for at in starts]
    assert len(starts) > 5
    for start, table in zip(starts[1:], tables[1:], strict=True):
        for end in {start, table}:  # with and without the tables of the scan
            for tail in (b"", b"\xff\xd9"):
                with pytest.raises(UndecodableImage, match="pixels are missing"):
                    crop(data[:end] + tail)


def test_lost_interval_between_restart_markers_is_refused() -> None:
    data = jpeg("restart markers")
    first, second = (data.index(bytes((0xFF, marker)), data.index(b"\xff\xda")) for marker in (0xD2, 0xD3))
    with pytest.raises(UndecodableImage, match="pixels are missing"):
        crop(data[:first] + data[second:])


def test_last_byte_of_a_marker_may_be_missing_or_doubled() -> None:
    data = jpeg("baseline")
    for tail in (b"\xff", b"\xff\xff\xff\xd9", b"\xff\xd9\xff\xd9"):
        assert_close(crop(data + tail), crop(data + b"\xff\xd9"), 0)


@pytest.mark.parametrize("grey", [False, True])
def test_stated_size_beyond_what_the_data_can_hold_is_refused_without_a_decode(grey: bool) -> None:
    data = encode(Image.new("L" if grey else "RGB", (64, 64)), "JPEG")
    frame = data.index(b"\xff\xc0")
    bomb = data[: frame + 5] + struct.pack(">HH", 14_000, 14_000) + data[frame + 9 :]
    header = images.read_header(bomb, 200_000_000)
    with pytest.raises(UndecodableImage, match="pixels are missing"):
        images.decode(header, PRESET, fast=True)


def test_scan_of_an_unknown_component_is_refused() -> None:
    data = jpeg("baseline", "L")
    scan = data.index(b"\xff\xda")
    with pytest.raises(UndecodableImage):
        crop(data[: scan + 5] + b"\x77" + data[scan + 6 :])


def test_file_that_ends_in_its_scan_header_is_refused() -> None:
    data = jpeg("baseline")
    scan = data.index(b"\xff\xda")
    for end in range(scan, scan + 15):
        with pytest.raises(UndecodableImage):
            crop(data[:end])


def test_comment_between_the_scans_is_skipped() -> None:
    data = jpeg("progressive")
    last = data.rindex(b"\xff\xda")
    noted = data[:last] + jpeg_segment(0xFE, b"a comment") + data[last:]
    assert images.read_header(noted, MAX_PIXELS).progressive
    assert_close(crop(noted), crop(data), 0)
