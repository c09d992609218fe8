"""Coarse groups of ImageNet's classes, each one to three nodes of WordNet. The first group above a class counts."""

from collections.abc import Mapping
from types import MappingProxyType

from app.imagenet.taxonomy import Taxonomy

OTHER = "other"

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dog": ("n02084071",),
        "cat": ("n02120997",),  # and lions, tigers and the like
        "other mammal": ("n01861778",),
        "bird": ("n01503061",),
        "reptile": ("n01661091",),
        "fish": ("n02512053",),
        "insect": ("n02159955",),
        "other animal": ("n00015388",),
        "plant or fungus": ("n00017222", "n12992868"),
        "food": ("n00021265", "n07555863", "n13134947"),
        "vehicle": ("n04524313",),
        "musical instrument": ("n03800933",),
        "sports equipment": ("n04285146",),
        "clothing": ("n03051540",),
        "furniture": ("n03405725",),
        "electronic equipment": ("n03278248",),
        "container": ("n03094503",),
        "structure": ("n04341686",),
        "device": ("n03183080",),
        "landscape": ("n09287968",),
    }
)


def groups(taxonomy: Taxonomy) -> list[str]:
    """The group of each class, in the order of the logits."""
    above = {wnid for node in GROUPS.values() for wnid in node} & taxonomy.index.keys()
    rows = {wnid: taxonomy.above[taxonomy.index[wnid]] for wnid in above}

    def group(class_id: int) -> str:
        for name, wnids in GROUPS.items():
            if any(rows[wnid][class_id] for wnid in wnids if wnid in rows):
                return name
        return OTHER

    return [group(class_id) for class_id in range(len(taxonomy.classes))]
