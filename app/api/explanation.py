"""A class activation map as part of a response."""

import base64
from dataclasses import asdict, dataclass

import numpy as np

from app.classifier import Result
from app.engine.base import BEST
from app.errors import Internal
from app.images import Preprocessing, heatmap
from app.images.geometry import crop_box


@dataclass(frozen=True, slots=True)
class Explanation:
    """The class activation map of a class (Zhou et al. 2016, arXiv:1512.04150).

    ``grid`` has the contribution of each part of the crop to the logit of the class, row by row: their mean plus the
    bias of the class is the logit. ``box`` is the crop in the upright picture: left, top, right, bottom in pixels; None
    if the client has sent the crop itself. ``png`` is absent unless requested: base64 of an RGBA PNG with one pixel for
    each number of the grid.
    """

    class_id: int
    grid: list[list[float]]
    box: list[float] | None
    png: str | None = None

    def members(self) -> dict[str, object]:
        """The members of a response."""
        return {name: value for name, value in asdict(self).items() if name != "png" or value is not None}


def explanation(result: Result, class_id: int, preprocessing: Preprocessing, png: bool = False) -> Explanation:
    """The explanation of an image, whose map was wanted for ``class_id`` or ``BEST``. ``png``: with a PNG."""
    if result.row.activation is None:
        raise Internal("the device returned no class activation map")
    explained = int(result.row.class_ids[0]) if class_id == BEST else class_id
    box = result.size and [round(edge, 1) for edge in crop_box(*result.size, preprocessing)]
    grid = result.row.activation.astype(np.float64).round(4)
    drawn = base64.b64encode(heatmap.png(grid)).decode() if png else None
    return Explanation(explained, grid.tolist(), box, drawn)
