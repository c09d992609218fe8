"""What a model says of the shared photographs and of generated pictures: its logits and features."""

import functools
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.commands import inference
from app.commands.evaluate.read import read
from app.engine import Row, Want
from app.settings import Settings
from tests.calibration import pictures
from tests.conftest import SHARED

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

COUNT = 50
"""Generated pictures of each kind."""


class Rows(NamedTuple):
    """``logits`` [n, classes] and ``features`` [n, dim] of n pictures."""

    logits: Floats
    features: Floats


class Measured(NamedTuple):
    """The photographs, their true classes [n], and the generated pictures by kind."""

    photographs: Rows
    truth: Ints
    generated: dict[str, Rows]


@functools.cache
def measured(model: str = "resnet50", precision: str = "float32") -> Measured:
    """Classify all, with the shared weights of the model if there are any."""
    weights = SHARED / "weights" / f"{model}.safetensors"
    settings = Settings(
        _env_file=None, model=model, weights=weights if weights.is_file() else None, precision=precision
    )
    with closing(inference.load(settings)) as classifier, tempfile.TemporaryDirectory() as folder:
        samples = read(SHARED / "images" / "imagenet", classifier.model.labels)

        def rows(files: Sequence[Path]) -> Rows:
            found: dict[int, Row] = {}
            inference.classify_files(classifier, files, Want(features=True, logits=True), found.__setitem__)  # type: ignore[arg-type]
            ordered = [found[i] for i in range(len(files))]
            return Rows(np.stack([row.logits for row in ordered]), np.stack([row.features for row in ordered]))  # type: ignore[arg-type]

        generated = {kind: rows(pictures.write(Path(folder), kind, COUNT)) for kind in pictures.KINDS}
        return Measured(rows(samples.files), samples.truth, generated)
