"""The coarse groups of ImageNet's classes."""

from collections import Counter

import pytest

from app.drift.groups import GROUPS, OTHER, groups
from app.imagenet import taxonomy
from app.imagenet.labels import Label, imagenet1k

TREE = taxonomy.of(imagenet1k())
assert TREE
FOUND = groups(TREE)


@pytest.mark.parametrize(
    ("wnid", "group"),
    [
        ("n02111889", "dog"),  # Samoyed
        ("n02124075", "cat"),  # Egyptian cat
        ("n02129165", "cat"),  # lion
        ("n02134084", "other mammal"),  # ice bear
        ("n01514668", "bird"),  # cock
        ("n07753592", "food"),  # banana
        ("n04461696", "vehicle"),  # tow truck
        ("n02676566", "musical instrument"),  # acoustic guitar
        ("n09468604", "landscape"),  # valley
        ("n10565667", OTHER),  # scuba diver
    ],
)
def test_a_class_is_in_its_group(wnid: str, group: str) -> None:
    assert FOUND[[label.wnid for label in imagenet1k()].index(wnid)] == group


def test_every_group_is_used_and_few_classes_are_in_none() -> None:
    counts = Counter(FOUND)
    assert counts.keys() == GROUPS.keys() | {OTHER}
    assert min(counts.values()) >= 8
    assert counts[OTHER] < 250


def test_a_model_of_a_few_classes_has_groups_too() -> None:
    small = taxonomy.of([Label("cat", "n02124075"), Label("truck", "n04461696"), Label("bird", "n01503061")])
    assert small
    assert groups(small) == ["cat", "vehicle", "bird"]
