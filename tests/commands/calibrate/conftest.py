"""Pictures whose classes the tiny model knows, mostly."""

import csv
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.calibration import stored
from app.commands import inference
from app.engine import Want
from app.settings import Settings
from tests import tiny
from tests.commands.runner import topk

PICTURES = 40
WRONG = 10
"""That many pictures have another label than the model's."""


def settings(**options: object) -> Settings:
    return Settings(_env_file=None, **{"model": tiny.model()[1], **options})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders named by index: what the model sees in each of 40 pictures, but for ten labels."""
    pictures = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(PICTURES):
        coarse = random.integers(0, 256, (4 + i % 5, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((260, 240), Image.Resampling.BICUBIC).save(pictures / f"{i:02}.png")
    files = sorted(pictures.iterdir())
    classes = list(_best(files))
    root = tmp_path_factory.mktemp("photographs")
    for i, (file, best) in enumerate(zip(files, classes, strict=True)):
        folder = root / str(999 - best if i < WRONG else best)
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
    return root


@pytest.fixture
def listing(photographs: Path, tmp_path: Path) -> Path:
    """The same as a CSV file."""
    path = tmp_path / "photographs.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "label"))
        rows.writerows((one, one.parent.name) for one in photographs.rglob("*.png"))
    return path


@pytest.fixture(scope="session")
def calibrated(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, calibrated in float32 into a new folder. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("calibrated") / "my-tiny"
    ran = topk("calibrate", photographs, *tiny.model(), "--out", out, "--precision", "float32")
    assert ran.returncode == 0, ran.stderr
    assert (out / stored.FILE).is_file()
    return out


def _best(files: list[Path]) -> Iterator[int]:
    found: dict[int, int] = {}
    with closing(inference.load(settings(precision="float32"))) as classifier:
        inference.classify_files(
            classifier,
            files,
            Want(),
            lambda place, row: found.update({place: int(row.class_ids[0])}),  # type: ignore[union-attr]
        )
    return (found[place] for place in range(len(files)))
