"""Networks with random weights, by the name that a model folder stores."""

from typing import TYPE_CHECKING

from app.models import embedded
from app.models.names import TIMM

if TYPE_CHECKING:
    from torch import nn


def network(architecture: str, crop: int) -> "nn.Module":
    """Build the network for images of ``crop`` x ``crop``. Raises ModelError if the architecture is unknown."""
    if architecture == embedded.NAME:
        return embedded.network()
    if architecture.startswith(TIMM):
        from app.models import timm

        return timm.network(architecture.removeprefix(TIMM))
    from app.models import zoo

    return zoo.network(architecture, crop)
