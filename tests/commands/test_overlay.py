"""A class activation map over a picture."""

import numpy as np
from PIL import Image

from app.commands.reports import overlay


def test_a_box_of_one_pixel_is_no_error() -> None:
    picture = Image.new("RGB", (10, 10))
    overlay.tint(picture, np.ones((7, 7), np.float32), (3, 4, 4, 5))
    overlay.frame(picture, (3, 4, 4, 5))
    assert np.argwhere(np.asarray(picture).any(axis=2)).tolist() == [[4, 3]]
