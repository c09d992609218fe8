"""Names are checked against the sources of torchvision and timm, without importing either."""

import subprocess
import sys

import pytest
import torchvision.models
from timm.models._registry import _model_entrypoints

from app import models
from app.errors import ModelError
from app.models import catalogue, zoo
from app.settings import Settings
from tests.conftest import REPOSITORY


def test_torchvision_s_sources_have_its_names_and_weights() -> None:
    assert catalogue.torchvision_entries() == {
        name: tuple(torchvision.models.get_model_weights(name).__members__) for name in zoo.architectures()
    }


def test_timm_s_sources_have_every_name_that_it_accepts() -> None:
    assert catalogue.timm_names() == set(_model_entrypoints)


@pytest.mark.parametrize(
    "spec",
    ["resnet50", "resnet50:IMAGENET1K_V2", "efficientnet_lite0", "timm:resnet10t.c3_in1k", "timm:tv_resnet50"],
)
def test_known_names_pass(spec: str) -> None:
    catalogue.check(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet5O", r"^there is no model 'resnet5O'; did you mean resnet50 or .*\? `topk models` lists"),
        ("auto:IMAGENET1K_V2", "^there is no model 'auto'"),
        ("resnet50:V9", "^resnet50 has no weights 'V9'; choose one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"),
        ("timm:resnet5O", r"^timm has no model 'resnet5O'; did you mean resnet50 or .*\? `topk models --timm"),
        ("timm:", "^timm has no model '';"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        catalogue.check(spec)


def test_without_the_sources_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    catalogue.check("resnet5O")
    catalogue.check("timm:resnet5O")


def test_a_missing_weights_file_is_found_before_any_work() -> None:
    with pytest.raises(ModelError, match=r"^nowhere\.pth does not exist$"):
        models.check(Settings(model="resnet50", weights="nowhere.pth", _env_file=None))


@pytest.mark.parametrize("spec", ["resnet5O", "timm:resnet5O"])
def test_a_check_imports_no_framework(spec: str) -> None:
    code = f"""
import sys
from app import models
from app.errors import ModelError
from app.settings import Settings
try:
    models.resolve(Settings(model={spec!r}, _env_file=None), converted=True)
except ModelError as error:
    print(error.detail, sorted({{"torch", "torchvision", "timm"}} & sys.modules.keys()))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "did you mean resnet50" in ran.stdout
    assert ran.stdout.endswith(" []\n")
