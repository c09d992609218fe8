"""The classes of ImageNet-1k, against torchvision's names and timm's wnids."""

import re

import pytest
from timm.data import ImageNetInfo
from torchvision.models import ResNet50_Weights

from app.imagenet.labels import Label, imagenet1k
from tests.conftest import PHOTOGRAPHS


def test_there_are_1000_classes_and_none_twice() -> None:
    labels = imagenet1k()
    assert len(labels) == len({label.label for label in labels}) == len({label.wnid for label in labels}) == 1000


def test_the_labels_are_torchvision_s_in_their_order() -> None:
    assert [label.label for label in imagenet1k()] == ResNet50_Weights.IMAGENET1K_V2.meta["categories"]


def test_the_wnids_are_imagenet_s_in_their_order() -> None:
    wnids = [label.wnid for label in imagenet1k()]
    assert wnids == ImageNetInfo("imagenet-1k").label_names()
    assert wnids == sorted(wnids, key=str)
    assert all(re.fullmatch(r"n\d{8}", str(wnid)) for wnid in wnids)


def test_class_258_is_the_samoyed() -> None:
    assert imagenet1k()[258] == Label("Samoyed", "n02111889")


@pytest.mark.shared
def test_the_shared_photographs_lie_in_folders_of_known_wnids() -> None:
    assert {path.parent.name for path in PHOTOGRAPHS} <= {label.wnid for label in imagenet1k()}
