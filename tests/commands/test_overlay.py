"""A class activation map in one colour."""

import numpy as np
from PIL import Image

from app.commands.reports import overlay


def test_opacity_is_proportional_to_what_speaks_for_the_class() -> None:
    activation = np.full((7, 7), -3, np.float32)
    activation[2, 5], activation[5, 1] = 8, 4
    found = overlay.opacity(activation, (70, 140))
    assert found.shape == (140, 70)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert (row // 20, column // 10) == (2, 5)
    assert abs(found[110, 15] / found[50, 55] - 0.5) < 0.1
    assert found[:20].max() <= 3  # a smooth transition overshoots a little


def test_a_map_that_speaks_against_the_class_has_no_colour() -> None:
    assert not overlay.opacity(np.full((7, 7), -1, np.float32), (10, 10)).any()
    assert not overlay.opacity(np.zeros((7, 7), np.float32), (10, 10)).any()


def test_a_box_of_one_pixel_is_no_error() -> None:
    picture = Image.new("RGB", (10, 10))
    overlay.tint(picture, np.ones((7, 7), np.float32), (3, 4, 4, 5))
    overlay.frame(picture, (3, 4, 4, 5))
    assert np.argwhere(np.asarray(picture).any(axis=2)).tolist() == [[4, 3]]
