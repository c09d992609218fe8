"""A trained network and its labels -> a model folder, measured as it is served, and moved into place whole."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import safetensors.torch
from torch import nn

from app.commands.evaluate import local
from app.commands.evaluate.evaluation import Evaluation, measured
from app.commands.evaluate.read import Samples
from app.commands.train.progress import Bars
from app.errors import ModelError
from app.imagenet.labels import Label
from app.models import download, folder
from app.models.model import Model, Training
from app.settings import Settings

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


def as_served(place: Path, held_out: Samples, settings: Settings, bars: Bars) -> Evaluation:
    """What the folder answers for these images, by the path that serves it. Raises ModelError and EvaluationError."""
    settings = settings.model_copy(update={"model": str(place), "weights": None, "model_name": None})
    with bars.busy("loading the trained model"):
        source = local.load(settings)
    with closing(source), bars.count("held-out images", len(held_out.files)) as watch:
        return measured(source, held_out, watch)


def _digest(network: nn.Module, beside: Path) -> str:
    path = beside / "weights.safetensors"
    safetensors.torch.save_model(network, str(path))
    try:
        return download.sha256(path)
    finally:
        path.unlink()
