"""The same share of each class, the same images for the same seed."""

import numpy as np
import pytest

from app.commands.train.holdout import split

CLASSES = np.array([0] * 40 + [1] * 10 + [2] * 6)


@pytest.mark.parametrize(("share", "counts"), [(0.2, [8, 2, 1]), (0.5, [20, 5, 1]), (0.01, [1, 1, 1])])
def test_each_class_gives_its_share_and_keeps_five(share: float, counts: list[int]) -> None:
    learned, held_out = split(CLASSES, share, 0)
    assert np.bincount(CLASSES[held_out]).tolist() == counts
    assert sorted([*learned, *held_out]) == list(range(len(CLASSES)))


def test_it_follows_from_the_seed() -> None:
    assert np.array_equal(split(CLASSES, 0.2, 1)[1], split(CLASSES, 0.2, 1)[1])
    assert not np.array_equal(split(CLASSES, 0.2, 1)[1], split(CLASSES, 0.2, 2)[1])
