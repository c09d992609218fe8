"""A class activation map in one colour."""

import io

import numpy as np
from PIL import Image

from app.images import heatmap


def test_opacity_is_proportional_to_what_speaks_for_the_class() -> None:
    activation = np.full((7, 7), -3, np.float32)
    activation[2, 5], activation[5, 1] = 8, 4
    found = heatmap.opacity(activation, (70, 140))
    assert found.shape == (140, 70)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert (row // 20, column // 10) == (2, 5)
    assert abs(found[110, 15] / found[50, 55] - 0.5) < 0.1
    assert found[:20].max() <= 3  # a smooth transition overshoots a little


def test_a_map_that_speaks_against_the_class_has_no_colour() -> None:
    assert not heatmap.opacity(np.full((7, 7), -1, np.float32), (10, 10)).any()
    assert not heatmap.opacity(np.zeros((7, 7), np.float32), (10, 10)).any()


def test_a_png_has_a_pixel_for_each_contribution() -> None:
    activation = np.array([[-1, 0, 0.001], [10, 20, -0.0]])  # two rows
    with Image.open(io.BytesIO(heatmap.png(activation))) as picture:
        pixels = np.asarray(picture)
    assert (pixels[..., :3] == heatmap.COLOUR).all()
    assert pixels[..., 3].tolist() == [[0, 0, 1], [90, 179, 0]]
