"""The hostile pictures are well formed: a small one of each kind decodes."""

import io
import zlib

import pytest
from PIL import Image

from tests.attacks import jpegs, pictures


def decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (pictures.tiff_tile(256), (8, 8)),
        (pictures.tiff_tile(256, bits=1), (8, 8)),
        (pictures.tiff_jpeg(jpegs.arithmetic_progressive(9, 64, 64), 64, 64), (64, 64)),
        (pictures.tiff_jpeg(jpegs.arithmetic(64, 64), 64, 64), (64, 64)),
        (pictures.png(pictures.iccp() * 2, pictures.ztxt()), (64, 64)),
        (pictures.png(pictures.itxt()), (64, 64)),
        (pictures.webp_groups(64), (64, 64)),
        (pictures.webp_alpha_groups(64), (64, 64)),
        (pictures.webp_flat(64), (64, 64)),
        (pictures.gif(64, 8), (64, 64)),
        (pictures.gif(8, 64), (64, 64)),
        (pictures.bmp_runs(600, 20), (600, 20)),
        (jpegs.arithmetic(64, 64), (64, 64)),
        (jpegs.arithmetic_progressive(9, 64, 64), (64, 64)),
        (jpegs.arithmetic_behind_junk(64, 64), (64, 64)),
        (jpegs.dc_only(64, 64), (64, 64)),
        (jpegs.progressive(9, 64, 64), (64, 64)),
        (jpegs.restart_intervals(64, 64), (64, 64)),
        (jpegs.segments(9), (64, 64)),
        (jpegs.fill_bytes(9), (64, 64)),
    ],
)
def test_small_ones_decode(data: bytes, size: tuple[int, int]) -> None:
    assert decoded(data).size == size


def test_zeros_are_written_without_being_compressed() -> None:
    for count in (1, 2**20, 3 * 2**20 + 5):
        assert zlib.decompress(pictures.deflated_zeros(count)) == bytes(count)


def test_arithmetic_jpegs_are_of_512_bytes() -> None:
    assert len(jpegs.arithmetic()) == 512


def test_every_group_of_the_webp_is_used() -> None:
    assert len(pictures.webp_groups()) > 65536 * 4
