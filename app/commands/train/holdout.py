"""Which images are held out: the same share of each class, and the same images for the same seed."""

import numpy as np
import numpy.typing as npt

from app.commands.train.examples import FOLDS

Ints = npt.NDArray[np.int64]


def split(class_ids: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """The positions of the images to train on, and of those held out, both ascending.

    Of each class, at least one image is held out and at least ``FOLDS`` are not.
    """
    random = np.random.default_rng(seed)
    held_out = []
    for class_id in np.unique(class_ids):
        members = random.permutation(np.flatnonzero(class_ids == class_id))
        held_out.append(members[: np.clip(round(share * len(members)), 1, len(members) - FOLDS)])
    chosen = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(class_ids)), chosen), chosen
