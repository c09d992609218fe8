"""Networks by the name that a model folder keeps."""

import pytest
import torch

from app import models
from app.errors import ModelError
from tests.models.seeded import images, seeded


@pytest.mark.parametrize(
    ("architecture", "crop"),
    [
        ("resnet18", 224),
        ("vit_b_32", 256),
        ("efficientnet_lite0", 224),
        ("timm:test_vit", 160),
        ("timm:resnet10t.c3_in1k", 176),
    ],
)
@torch.inference_mode()
def test_every_kind_of_architecture_is_built_by_its_name(architecture: str, crop: int) -> None:
    network = seeded(lambda: models.network(architecture, crop))
    assert network(images(crop, 1)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("resnet51", "no model 'resnet51'"),
        ("timm:", "timm has no model ''"),
        ("timm:resnet51", "timm has no model 'resnet51'"),
        ("timm:timm/resnet10t", "timm has no model 'timm/resnet10t'"),
        ("timm:local-dir:docs", "timm has no model 'local-dir:docs'"),
        ("timm:resnet10t.mine", "timm has no weights 'mine' for resnet10t"),
    ],
)
def test_an_unknown_architecture_is_a_clear_error(architecture: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        models.network(architecture, 224)
