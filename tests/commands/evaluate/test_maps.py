"""Class activation maps beside the mistakes in the report."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from app.commands.evaluate import local, report
from app.commands.evaluate.evaluation import Evaluation, EvaluationPlan, evaluated
from app.commands.evaluate.progress import EvaluationProgress
from app.errors import DeviceLost
from app.settings import Settings
from tests import tiny
from tests.commands.evaluate.test_report import PIXELS, Balanced
from tests.conftest import CAT

TINY = Settings(_env_file=None, model=tiny.model()[1])


def evaluate(pictures: Path, settings: Settings) -> Evaluation:
    progress = EvaluationProgress(Console(stderr=True))
    with evaluated(EvaluationPlan(pictures, explain=report.PICTURES), settings, progress) as found:
        return found


def pixels(source: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The pixels of a picture in the page."""
    content = base64.b64decode(source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)), np.float64)


@pytest.fixture(scope="module")
def explained(pictures: Path) -> Evaluation:
    return evaluate(pictures, TINY)


@pytest.fixture
def source() -> Iterator[local.Local]:
    loaded = local.load(TINY)
    yield loaded
    loaded.close()


def test_every_mistake_has_its_map_beside_it(explained: Evaluation) -> None:
    seen = Balanced(report.page(explained, PIXELS))
    mistakes = explained.mistakes()
    assert seen.open == []
    assert len(seen.images) == 2 * len(mistakes) > 0
    assert explained.maps.keys() == set(mistakes)
    assert "what supports the predicted class" in " ".join(seen.texts)


def test_a_thumbnail_is_hot_where_the_map_is(explained: Evaluation) -> None:
    plain, mapped = map(pixels, Balanced(report.page(explained, PIXELS)).images[:2])
    change = np.abs(mapped - plain).sum(axis=2)
    activation = explained.maps[explained.mistakes()[0]]
    cells = change.reshape(8, 22, 8, 22).mean(axis=(1, 3))
    assert activation.shape == cells.shape
    assert np.corrcoef(cells.ravel(), activation.ravel())[0, 1] > 0.4


def test_the_map_is_that_of_the_predicted_class(explained: Evaluation, source: local.Local) -> None:
    first = explained.mistakes()[0]
    guess = explained.guess(first).class_id
    files = [explained.samples.files[first]] * 2
    found = source.explain(files, [guess, guess - 1], lambda _: None)
    assert found[0] == pytest.approx(explained.maps[first], rel=0.02, abs=0.5)
    assert found[1] != pytest.approx(found[0], rel=0.02, abs=0.5)


def test_a_file_that_fails_is_left_out(source: local.Local, tmp_path: Path) -> None:
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(CAT.read_bytes()[:3000])
    seen: list[int] = []
    assert source.explain([tmp_path / "gone.jpg", CAT, torn], [1, 2, 3], seen.append).keys() == {1}
    assert seen == [1, 2, 3]


def test_a_device_that_fails_costs_only_the_maps(source: local.Local) -> None:
    source.classifier.abandon(DeviceLost("the device has failed"))
    assert source.explain([CAT, CAT], [1, 2], lambda _: None) == {}


@pytest.mark.slow
def test_a_model_without_maps_has_the_plain_report(pictures: Path) -> None:
    found = evaluate(pictures, TINY.model_copy(update={"explain": False}))
    page = report.page(found, PIXELS)
    assert found.maps == {}
    assert len(Balanced(page).images) == len(found.mistakes())
    assert not re.search("gallery mapped|what supports", page)
