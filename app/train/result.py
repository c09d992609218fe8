"""A trained network and its labels -> a model folder, measured as it is served, and moved into place whole."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import nn

from app.classifier import Classifier
from app.engine import Want
from app.errors import ModelError, TrainingError
from app.evaluate.metrics import Metrics, measure
from app.models import download, folder
from app.models.labels import Label
from app.models.model import Model, Training
from app.settings import Settings
from app.train.examples import Example
from app.train.progress import Bars
from app.train.served import Rows

WEIGHTS = "trained"
"""What a trained model's weights are called in answers."""


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A place for the folder until it is whole; moved to ``out`` at the end, gone where there is none.

    Raises ModelError.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-", ignore_cleanup_errors=True) as made:
            place = Path(made) / out.name
            yield place
            place.rename(out)
    except OSError as error:
        raise ModelError(f"{out} cannot be written: {error.strerror or error}") from error


def write(network: nn.Module, parent: Model, classes: Sequence[str], place: Path) -> None:
    """Write a model folder. Raises ModelError."""
    network = network.cpu().float().eval()
    digest = _digest(network, place.parent)
    labels = tuple(Label(name) for name in classes)
    model = replace(
        parent,
        weights=WEIGHTS,
        digest=digest,
        labels=labels,
        build=lambda: copy.deepcopy(network),  # converting takes it apart
        precision="auto",
        openvino=None,
        training=Training(parent.digest, {}),
    )
    folder.write(model, place)


def as_served(place: Path, held_out: Sequence[Example], settings: Settings, bars: Bars) -> Metrics:
    """What the folder answers for these images, by the path that serves it. Raises ModelError."""
    with bars.busy("loading the trained model"):
        classifier = Classifier(settings.model_copy(update={"model": str(place), "weights": None, "model_name": None}))
        classifier.load()
    try:
        with bars.bar("held-out images", len(held_out)) as advance:
            rows = Rows(classifier, [example.path for example in held_out], Want(probabilities=True), advance)
            rows.ask()
    finally:
        classifier.close()
    answered = sorted(rows.rows)
    if not answered:
        raise TrainingError("the held-out images can no longer be read")
    probabilities = np.array([rows.rows[i].probabilities for i in answered], np.float32)
    truth = np.array([held_out[i].class_id for i in answered], np.int64)
    return measure(probabilities, truth, classifier.model.labels)


def _digest(network: nn.Module, beside: Path) -> str:
    path = beside / "weights.safetensors"
    safetensors.torch.save_model(network, str(path))
    try:
        return download.sha256(path)
    finally:
        path.unlink()
