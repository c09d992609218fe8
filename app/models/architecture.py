"""An architecture's network by the name that a model folder keeps: torchvision's, timm's and the embedded one's."""

from typing import TYPE_CHECKING

from app.models import embedded

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"


def network(architecture: str, crop: int) -> "nn.Module":
    """Random weights, for images of ``crop`` x ``crop``. Raises ModelError where there is no such architecture."""
    if architecture == embedded.NAME:
        return embedded.network()
    if architecture.startswith(TIMM):
        from app.models import timm

        return timm.network(architecture.removeprefix(TIMM))
    from app.models import zoo

    return zoo.network(architecture, crop)
