"""Labelled images that are in the repository or made, and what the embedded model says of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from app.commands.evaluate.evaluation import Evaluation, EvaluationPlan, evaluated
from app.commands.evaluate.progress import EvaluationProgress
from app.settings import Settings
from tests.conftest import CAT

SETTINGS = Settings(_env_file=None, model="efficientnet_lite0")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cat under three names, two made pictures, and two files that are none."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("n02124075", "tabby", "tiger cat"):
        (root / name).mkdir()
        (root / name / "cat.jpg").write_bytes(CAT.read_bytes())
    (root / "tabby" / "torn.jpg").write_bytes(CAT.read_bytes()[:3000])
    (root / "tabby" / "empty.jpg").touch()
    noise = np.random.default_rng(0).integers(0, 256, (2, 300, 400, 3), np.uint8)
    for i, name in enumerate(("velvet", "jigsaw puzzle")):
        (root / name).mkdir()
        Image.fromarray(noise[i]).save(root / name / "<b>noise & more.png")
    return root


@pytest.fixture(scope="session")
def evaluation(pictures: Path) -> Iterator[Evaluation]:
    """In-process, beside the reference."""
    with evaluated(
        EvaluationPlan(pictures, compare="float32"), SETTINGS, EvaluationProgress(Console(stderr=True))
    ) as found:
        yield found
