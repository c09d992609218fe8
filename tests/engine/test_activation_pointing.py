"""The pointing test (Zhang et al. 2016, arXiv:1608.00507): is the maximum of a map on the object?

boxes.csv has the boxes of the objects of 20 photographs, in pixels, drawn by hand before a map was seen.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from app.engine import Engine, Want
from app.engine.openvino import OpenVinoEngine
from app.engine.torch import TorchEngine
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing, decode_sized, read_header
from app.images.geometry import crop_box
from app.models import zoo
from tests.conftest import PHOTOGRAPHS, RESNET50

pytestmark = [pytest.mark.shared, pytest.mark.slow]

BOXES = list(csv.DictReader((Path(__file__).parent / "boxes.csv").read_text().splitlines()))
MAX_PIXELS = 10**7
CLASS_IDS = {label.wnid: class_id for class_id, label in enumerate(imagenet1k())}


def pointed(engine: Engine, preprocessing: Preprocessing, path: Path) -> tuple[float, float]:
    """Where the map of the photograph's class is largest: the centre of the cell, in pixels of the picture."""
    crop, (width, height) = decode_sized(read_header(path.read_bytes(), MAX_PIXELS), preprocessing, fast=True)
    activation = engine.forward([crop], [Want(explain=CLASS_IDS[path.parent.name])]).activations[0]
    row, column = np.unravel_index(activation.argmax(), activation.shape)
    left, top, right, bottom = crop_box(width, height, preprocessing)
    rows, columns = activation.shape
    return left + (column + 0.5) / columns * (right - left), top + (row + 0.5) / rows * (bottom - top)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_the_maximum_of_a_map_is_on_the_object(kind: str) -> None:
    model = zoo.from_file("resnet50", None, RESNET50)
    serving = OpenVinoEngine(model, "auto") if kind == "openvino" else TorchEngine(model, "cpu", "float32")
    engine = serving.explaining()
    engine.load()
    paths, missed = {path.name: path for path in PHOTOGRAPHS}, []
    for box in BOXES:
        x, y = pointed(engine, model.preprocessing, paths[box["file"]])
        if not (int(box["left"]) <= x <= int(box["right"]) and int(box["top"]) <= y <= int(box["bottom"])):
            missed.append(f"{box['file']}: {x:.0f}, {y:.0f}")
    assert len(BOXES) == 20
    assert len(missed) <= 2, missed
